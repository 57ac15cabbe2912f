"""What ran: each job behind a report, how long its stages took, what failed in it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from pipeline.artifact.artifact import Artifact
from pipeline.storage.paths import is_url
from schemas.records import JobRecord
from schemas.wording import clipped

MAX_REASONS = 20
EXAMPLES = 3
MAX_TEXT = 400  # characters of a text that a table repeats
MAX_FAILURES = 10
_STAGES = {
    "prune": ("read", "decode", "encode", "score", "select", "write"),
    "answer": ("load", "generate", "write"),
}


@dataclass(frozen=True, kw_only=True)
class JobRun:
    """One job, as its records tell it."""

    kind: str
    title: str
    address: str
    is_finished: bool
    shards: int
    unit: str  # "images" or "prompts"
    done: int
    began: str | None  # UTC; of the first model batch that is in force
    ended: str | None  # of the last commit
    wall_sec: float | None  # between them
    stages: Mapping[str, float]  # seconds of all workers together
    size_bytes: int
    feature_bytes: int
    devices: Sequence[str]
    failures: Sequence[tuple[int, str]]  # shards that were given up, and why
    notes: Sequence[str]
    settings: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, str]]
    model: str | None  # as its record has it
    selector: str

    @property
    def model_name(self) -> str:
        """The name of the model without the folders that it lies in; a hub's id is one by itself."""
        model = self.model or ""
        return model.rstrip("/").rpartition("/")[2] if model.startswith("/") or is_url(model) else model


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Inputs that failed for one reason, or prompts that were refused at one budget."""

    reason: str
    is_refusal: bool  # its prompts are refused answers; else its inputs are rows of `errors`
    count: int
    examples: Sequence[tuple[str, str]]  # source, message


def job_run(artifact: Artifact, job: JobRecord, title: str) -> JobRun:
    """Read the commit records of a job."""
    unit = "images" if job.kind == "prune" else "prompts"
    known = _STAGES.get(job.kind, ())
    stages: dict[str, float] = {}
    shards = done = size = features = 0
    began: list[float] = []
    ended: list[float] = []
    devices: Counter[str] = Counter()
    for record in artifact.commits():
        shards += 1
        done += record.files["selections"].rows if job.kind == "prune" else record.counts.get(unit, 0)
        for stage, seconds in record.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        size += sum(entry.size_bytes for entry in record.files.values())
        features += sum(entry.size_bytes for name, entry in record.files.items() if name.startswith("features"))
        began += [record.began] if record.began is not None else []
        ended += [record.committed] if record.committed is not None else []
        if record.device is not None:
            devices[record.device] += 1
    order = [*known, *sorted(set(stages) - set(known))]
    first, last = min(began, default=None), max(ended, default=None)
    failures = [(one.shard, clipped(one.message.splitlines()[0], MAX_TEXT)) for one in artifact.given_up()]
    return JobRun(
        kind=job.kind,
        title=title,
        address=artifact.address,
        is_finished=artifact.finished,
        shards=shards,
        unit=unit,
        done=done,
        began=_moment(first),
        ended=_moment(last),
        wall_sec=last - first if first is not None and last is not None else None,
        stages={stage: stages[stage] for stage in order if stage in stages},
        size_bytes=size,
        feature_bytes=features,
        devices=sorted(devices),
        failures=failures[:MAX_FAILURES],
        notes=[clipped(note, MAX_TEXT) for note in job.notes[:MAX_FAILURES]],
        settings=[(name, _shown(value)) for name, value in _flat(job.settings)],
        versions=[(name, _shown(value)) for name, value in sorted(job.environment.items())],
        model=job.environment.get("model"),
        selector=str(job.settings.get("selector", "-")),
    )


def failed_inputs(db: duckdb.DuckDBPyConnection) -> list[Failed]:
    """Failed inputs by reason with the first examples of each, then prompts that were refused; the frequent first."""
    inputs = "select reason, source, message from errors"
    refused = "select 'refused (' || budget || ')', prompt_id, message from answers where finish_reason = 'refused'"
    return [*_failed(db, inputs, is_refusal=False), *_failed(db, refused, is_refusal=True)]


def _failed(db: duckdb.DuckDBPyConnection, inputs: str, *, is_refusal: bool) -> list[Failed]:
    rows = db.sql(
        f"""
        select reason, count(*) as number, min({{'source': source, 'message': message}}, {EXAMPLES}) as examples
        from ({inputs}) as _ (reason, source, message)
        group by reason order by number desc, reason limit {MAX_REASONS}"""
    ).fetchall()
    return [
        Failed(
            reason=clipped(reason, MAX_TEXT),
            is_refusal=is_refusal,
            count=number,
            examples=[(clipped(one["source"] or "", MAX_TEXT), clipped(one["message"] or "", MAX_TEXT))
                      for one in examples],
        )
        for reason, number, examples in rows
    ]  # fmt: skip


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in sorted(settings.items()):
        rows += _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return rows


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return clipped(text, MAX_TEXT)
