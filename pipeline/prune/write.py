"""Stage write: one encoded shard to its files, then its commit record. Runs in CPU tasks.

File names depend on the shard number alone and a retry writes the same bytes, so a repeated shard replaces itself.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_features, write_table
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.metrics import count_shard
from pipeline.cluster.outcomes import Status, passed_on
from pipeline.prune.rows import OUTCOME, EncodeFacts, Outcome, ReadFacts, facts_among, nested_table, rows_among
from pipeline.storage import Store
from schemas.columns import table_of
from schemas.records import CommitRecord, FileEntry
from schemas.samples import IndexRow
from schemas.selections import ErrorRow, PromptRow
from schemas.statuses import OK, Counted

ELSEWHERE = "samples_elsewhere"  # count in a commit record: samples whose image lies in another shard


@dataclass(frozen=True)
class WriteSettings:
    """Where shards go and which forms of features are written."""

    root: Path | Store  # of the artifact, as its holder writes to it
    features: tuple[str, ...]  # of "webdataset", "parquet"; empty: none are stored
    policy: Policy = Policy()


def write_stage(batch: pa.Table, settings: WriteSettings) -> pa.Table:
    """A shard's table of `ENCODED` to its table of `OUTCOME`."""
    ended = passed_on(batch, OUTCOME)
    if ended is not None:
        return ended
    shard = batch["shard"][0].as_py()
    return _runner(settings.policy).run(shard, OUTCOME, lambda: write_shard(batch, settings))


@lru_cache(maxsize=1)
def _runner(policy: Policy) -> StageRunner:
    return StageRunner("write", policy)


def write_shard(batch: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write and commit one shard; its table of `OUTCOME`."""
    started = time.perf_counter()
    rows = rows_among(IndexRow, batch)
    read, encode = facts_among(ReadFacts, batch), facts_among(EncodeFacts, batch)
    shard = rows[0].shard
    resolve_repeats(rows, [row for row in rows if row.slot is not None])
    slots = [(row.slot, place) for place, row in enumerate(rows) if row.slot is not None and row.reason is None]
    places = [place for _, place in sorted(slots)]
    selections = nested_table(batch["selection"], places)
    statuses, counts = write_statuses(settings.root, shard, rows)
    files = {"selections": write_table(settings.root, "selections", shard, selections), **statuses}
    if settings.features:
        features = nested_table(batch["features"], places)
        files.update(write_features(settings.root, shard, selections, features, settings.features))
    record = CommitRecord(
        shard=shard,
        files=files,
        counts=counts,
        seconds={
            "read": round(read.read_seconds, 6),
            "decode": round(read.decode_seconds, 6),
            "encode": round(encode.encode_seconds, 6),
            "score": round(encode.score_seconds, 6),
            "select": round(encode.select_seconds, 6),
            "write": round(time.perf_counter() - started, 6),
        },
        began=encode.encode_began,
        committed=time.time(),
        device=encode.device,
        batch_size=encode.batch_size,
    )
    Artifact(settings.root).commit(record)
    count_shard(record, *(pc.sum(selections[name]).as_py() or 0 for name in ("num_tokens", "num_kept")))
    return table_of(Outcome, [outcome_of(record)])


def outcome_of(record: CommitRecord) -> Outcome:
    """What the driver learns of the shard of a commit record."""
    return Outcome(
        status=Status.COMMITTED,
        shard=record.shard,
        images=record.counts["images"],
        kept=record.files["selections"].rows,
        samples=record.counts["samples"],
        failed_samples=record.counts["samples"] - record.counts.get(Counted.SAMPLES.named(OK), 0),
        reasons=json.dumps(failed_samples(record)),
        errors=record.files["errors"].rows,
        device=record.device,
        batch_size=record.batch_size,
    )


def failed_samples(record: CommitRecord) -> dict[str, int]:
    """Failed input samples of a shard per reason."""
    return {reason: n for reason, n in Counted.SAMPLES.per_status(record.counts).items() if reason != OK}


def resolve_repeats(rows: Iterable[IndexRow], owners: Iterable[IndexRow]) -> None:
    """Let samples that repeat the bytes of another sample, the owner of the image, fail where the owner failed.

    Args:
        rows: samples of a shard.
        owners: samples that own their image.
    """
    failed = {owner.image_id: owner for owner in owners if owner.reason is not None}
    for row in rows:
        if row.reason is None and row.slot is None and row.image_id in failed:
            owner = failed[row.image_id]
            row.reason, row.message = owner.reason, f"same bytes as {owner.source}: {owner.message}"


def prompt_rows(rows: Iterable[IndexRow]) -> list[PromptRow]:
    """Rows of the prompts table: every prompt of every sample, with its status."""
    return [
        PromptRow(
            prompt_id=prompt.prompt_id,
            image_id=row.image_id,
            prompt=prompt.prompt,
            messages=prompt.messages,
            references=prompt.references,
            type=prompt.type,
            source=row.source,
            status=row.reason or prompt.status,
            shard=row.shard,
            image_shard=row.image_shard,
        )
        for row in rows
        for prompt in row.prompts
    ]


def error_rows(rows: Iterable[IndexRow]) -> Iterator[ErrorRow]:
    """Rows of the errors table: every sample that failed, and of the others every prompt that did."""
    for row in rows:
        if row.reason is not None:
            yield _error(row, None, row.reason, row.message)
            continue
        for prompt in row.prompts:
            if prompt.status != OK:
                yield _error(row, prompt.prompt_id, prompt.status, prompt.message)


def _error(row: IndexRow, prompt_id: str | None, reason: str, message: str | None) -> ErrorRow:
    return ErrorRow(
        source=row.source, prompt_id=prompt_id, image_id=row.image_id, reason=reason, message=message, shard=row.shard
    )


def write_statuses(root: Path | Store, shard: int, rows: list[IndexRow]) -> tuple[dict[str, FileEntry], dict[str, int]]:
    """Write what became of a shard's samples and prompts; the two files, and the counts of the commit record."""
    prompts = prompt_rows(rows)
    files = {
        "prompts": write_table(root, "prompts", shard, table_of(PromptRow, prompts)),
        "errors": write_table(root, "errors", shard, table_of(ErrorRow, list(error_rows(rows)))),
    }
    return files, _counts(rows, prompts)


def _counts(rows: list[IndexRow], prompts: list[PromptRow]) -> dict[str, int]:
    """Samples, distinct images and prompts in all; samples whose image lies elsewhere; samples, prompts per status."""
    counts = Counter(samples=len(rows), images=sum(row.slot is not None for row in rows), prompts=len(prompts))
    counts[ELSEWHERE] = sum(row.image_shard not in (None, row.shard) for row in rows)
    counts.update(Counted.SAMPLES.named(row.reason or OK) for row in rows)
    counts.update(Counted.PROMPTS.named(prompt.status) for prompt in prompts)
    return dict(counts)
