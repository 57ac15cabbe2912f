"""How far a job is, seen from outside: read out of its output, which is not written to, locked or changed by it."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.asked import read_record
from pipeline.artifact.index import read_index
from pipeline.cluster.run_folder import in_flight
from pipeline.errors import UserError
from schemas.records import CommitRecord, FailureRecord, JobRecord, OwnerRecord
from schemas.statuses import OK, Counted, failed_inputs

Say = Callable[[str], None]


class State(StrEnum):
    """What the job does now."""

    FINISHED = "finished"  # every shard is committed
    RUNNING = "running"  # its driver is a living process of this machine
    STOPPED = "stopped"  # no process holds the output, and there is work left
    ELSEWHERE = "elsewhere"  # its driver is, or was, on another machine, which can't be looked into from here


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the output of a job says about it."""

    output: str
    kind: str  # "prune" or "answer"
    state: State
    owner: OwnerRecord | None  # who holds the output, or was killed while it did
    shards: int | None  # of the whole job; None: not known yet, or not any more
    shards_done: int
    shards_running: dict[int, str]  # in which stage each is, or was when the run was killed
    shards_failed: list[FailureRecord]
    shards_damaged: list[int]  # their commit records can't be read: the next run does them again
    unit: str  # "images" or "prompts"
    total: int | None
    done: int
    rate: float | None  # units a second of steady work, in the run of `owner`
    eta_sec: float | None
    last_commit: float | None  # seconds since the epoch
    size_bytes: int  # of all committed files
    errors: dict[str, int]  # failed inputs by reason, or refused prompts
    notes: list[str] = field(default_factory=list)  # what could not be told, and why


@dataclass(frozen=True)
class _Whole:
    """What the job has to do in all."""

    shards: int | None = None
    total: int | None = None
    note: str | None = None  # why that is not known


def job_status(output: Path | str, now: Callable[[], float] = time.time) -> JobStatus:
    """The status of the job whose output lies there. Nothing is written, and no lock is taken.

    Raises:
        UserError: no job has begun there, or its record is damaged.
    """
    artifact = Artifact(output)
    job = artifact.read_job()
    if job is None:
        raise UserError(f"--output {output}: there is no _job.json; name the --output of a job that has begun")
    unit = "images" if job.kind == "prune" else "prompts"
    finished = artifact.finished
    running = {} if finished else in_flight(artifact.store)  # before the commits: a shard is never in neither
    owner = artifact.owner()
    tally = _Tally(unit)
    for shard, record in artifact.read_commits(artifact.committed_shards()):
        if isinstance(record, CommitRecord):
            tally.add(record)
        elif record is not None:  # else it was taken back meanwhile
            tally.damaged.append(shard)
    whole = _of_prune(artifact, tally.shards) if job.kind == "prune" else _of_source(artifact, job)
    rate = tally.rate(owner.began) if owner is not None else None
    finished = finished and not tally.damaged and whole.shards in (None, tally.shards)
    left = None if whole.total is None else max(0, whole.total - tally.done)
    return JobStatus(
        output=str(output),
        kind=job.kind,
        state=_state(finished, owner),
        owner=owner,
        shards=whole.shards,
        shards_done=tally.shards,
        shards_running={shard: stage for shard, stage in running.items() if shard not in tally.seen},
        shards_failed=[record for record in artifact.given_up() if record.shard not in tally.seen],
        shards_damaged=tally.damaged,
        unit=unit,
        total=whole.total,
        done=tally.done,
        rate=rate,
        eta_sec=left / rate if rate and left is not None and not finished else None,
        last_commit=max((when for when, _ in tally.commits), default=None),
        size_bytes=tally.size_bytes,
        errors=dict(tally.errors.most_common()),
        notes=[whole.note] if whole.note else [],
    )


def _state(finished: bool, owner: OwnerRecord | None) -> State:
    here = owner is not None and owner.host == socket.gethostname()
    if owner is not None and here and _lives(owner.process):
        return State.RUNNING
    if finished:
        return State.FINISHED
    return State.STOPPED if owner is None or here else State.ELSEWHERE


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 is none: it only asks
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@dataclass
class _Tally:
    """Counts over the commit records, each of which is read once."""

    unit: str
    shards: int = 0
    done: int = 0
    size_bytes: int = 0
    seen: set[int] = field(default_factory=set)
    damaged: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    commits: list[tuple[float, int]] = field(default_factory=list)  # when, and units

    def add(self, record: CommitRecord) -> None:
        units = record.counts.get(self.unit, 0)
        self.seen.add(record.shard)
        self.shards += 1
        self.done += units
        self.size_bytes += sum(entry.size_bytes for entry in record.files.values())
        self.errors.update(failed_inputs(record.counts))
        if refused := record.counts.get("refused"):
            self.errors["refused"] += refused
        if record.committed is not None:
            self.commits.append((record.committed, units))

    def rate(self, began: float) -> float | None:
        """Units a second between the first and the last commit since then: start-up does not count."""
        run = sorted(commit for commit in self.commits if commit[0] >= began)
        if len(run) < 2 or run[-1][0] <= run[0][0]:
            return None
        return sum(units for _, units in run[1:]) / (run[-1][0] - run[0][0])


def _of_prune(artifact: Artifact, done: int) -> _Whole:
    index = read_index(artifact.store)
    if index is None and done:
        return _Whole(note="its _index is gone, so it is not known how many shards there are; its job makes it anew")
    if index is None:
        return _Whole(note="the corpus is not indexed yet, so it is not known how many shards there will be")
    return _Whole(index.num_shards, index.num_images)


def _of_source(artifact: Artifact, job: JobRecord) -> _Whole:
    """A later job has a shard for each one of what it works on, which knows how many prompts there are.

    One that was given prompts of its own keeps them in its output.
    """
    if job.settings.get("asked") is not None:
        asked = read_record(artifact.store)
        if asked is None:
            return _Whole(note="its prompts are not assigned to shards yet, so it is not known how many there are")
        return _Whole(len(asked.files), sum(asked.rows.values()))
    option, count, work = {
        "answer": ("pruned", Counted.PROMPTS.named(OK), "answers"),
        "grade": ("answers", "prompts", "grades"),
    }[job.kind]
    where = job.environment.get(option)
    source = Artifact(where) if where is not None else None
    if source is None or not source.committed_shards():
        named = f"{where}, which it {work}, holds no shard any more" if where else f"its record names no --{option}"
        return _Whole(note=f"{named}, so it is not known how many shards there are")
    records = list(source.commits())
    return _Whole(len(records), sum(record.counts.get(count, 0) for record in records))
