"""The output folder: its job record, commit records, manifest, lock. Readers go through here, never through a glob."""

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import replace_file, sha256_of, writing
from schemas.records import CommitRecord, JobRecord, RecordError, to_json


@dataclass
class Resume:
    """What a rerun finds."""

    pending: list[int] = field(default_factory=list)  # shards still to do
    damaged: list[int] = field(default_factory=list)  # those of them that had been committed
    reasons: list[str] = field(default_factory=list)  # why they are done again
    num_images: int = 0  # distinct images of the shards that are done


class Artifact:
    """A folder of committed shards under one job record.

    Layout: `_job.json`, `_commits/00000017.json`, `manifest.json`, `_SUCCESS`, and the data files the commits name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read_job(self) -> JobRecord | None:
        """The job record, or None when the folder holds none.

        Raises:
            UserError: the record is damaged.
        """
        path = self.root / "_job.json"
        try:
            return JobRecord.from_json(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except RecordError as error:
            raise UserError(f"{error}; restore it, or start again in another --output") from error

    def require_job(self, kind: str, option: str) -> JobRecord:
        """The job record of an artifact made by `kind` ("prune" or "answer").

        Raises:
            UserError: no such artifact.
        """
        job = self.read_job()
        if job is None or job.kind != kind:
            maker = {"prune": "jobs.prune_corpus", "answer": "jobs.answer_corpus"}[kind]
            what = (
                "does not exist"
                if not self.root.exists()
                else "holds no _job.json"
                if job is None
                else f"was made by {job.kind}"
            )
            raise UserError(f"{option} {self.root}: {what}; name the --output of {maker}")
        return job

    def check_job(self, job: JobRecord) -> JobRecord | None:
        """The folder's own job record, None when there is none yet.

        Raises:
            UserError: the folder belongs to other settings, or holds files of something else.
        """
        old = self.read_job()
        if old is None:
            if self.root.exists() and any(p.name != "_lock" for p in self.root.iterdir()):
                raise UserError(f"--output {self.root} holds files but no _job.json; choose an empty or new folder")
            return None
        differences = old.differences(job)
        if differences:
            raise UserError(
                f"--output {self.root} was started with other settings:\n  "
                + "\n  ".join(differences)
                + "\nrepeat the old settings to resume it, or choose another --output"
            )
        return old

    def adopt_job(self, job: JobRecord) -> JobRecord:
        """Write the job record unless the folder has one; returns the one in force. Raises as `check_job` does."""
        old = self.check_job(job)
        if old is None:
            replace_file(self.root / "_job.json", to_json(job))
        return old or job

    def _commit_path(self, shard: int) -> Path:
        return self.root / "_commits" / f"{shard:08d}.json"

    def commit(self, record: CommitRecord) -> None:
        """Make a shard exist: its files are in place, now its record appears."""
        replace_file(self._commit_path(record.shard), to_json(record))

    def read_commit(self, shard: int) -> CommitRecord | None:
        """The commit record of a shard, or None when the shard has not happened.

        Raises:
            RecordError: the record is damaged.
        """
        path = self._commit_path(shard)
        try:
            return CommitRecord.from_json(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None

    def committed_shards(self) -> list[int]:
        """Numbers of all shards with a commit record, ascending."""
        folder = self.root / "_commits"
        if not folder.is_dir():
            return []
        return sorted(int(p.stem) for p in folder.iterdir() if p.suffix == ".json" and p.stem.isdigit())

    def commits(self) -> Iterator[CommitRecord]:
        """Every commit record, in shard order.

        Raises:
            UserError: a record is damaged.
        """
        for shard in self.committed_shards():
            try:
                record = self.read_commit(shard)
            except RecordError as error:
                raise UserError(f"{error}; run the job again with the same --output to redo that shard") from error
            if record is not None:
                yield record

    def problem_of(self, record: CommitRecord, *, deep: bool = False) -> str | None:
        """What is wrong with a shard's files, or None.

        Args:
            record: of the shard.
            deep: read every byte and compare sha256; otherwise only where size or time of change differ.
        """
        for entry in record.files.values():
            path = self.root / entry.path
            try:
                status = path.stat()
            except FileNotFoundError:
                return f"{entry.path} is missing"
            if status.st_size != entry.size_bytes:
                return f"{entry.path} has {status.st_size} bytes, its commit record says {entry.size_bytes}"
            if (deep or status.st_mtime_ns != entry.mtime_ns) and sha256_of(path) != entry.sha256:
                return f"{entry.path} differs from the sha256 in its commit record"
        return None

    def resume(self, num_shards: int, *, deep: bool = False) -> "Resume":
        """What is there and what is still to do.

        A shard whose record is damaged, or whose files are missing or altered, counts as never done.

        Args:
            num_shards: shards the job has in all.
            deep: read every committed byte.
        """
        resume = Resume()
        committed = set(self.committed_shards())
        for shard in range(num_shards):
            if shard not in committed:
                resume.pending.append(shard)
                continue
            try:
                record = self.read_commit(shard)
                problem = "its commit record vanished" if record is None else self.problem_of(record, deep=deep)
            except RecordError as error:
                record, problem = None, str(error)
            if problem is not None:
                resume.pending.append(shard)
                resume.damaged.append(shard)
                resume.reasons.append(f"shard {shard:08d} is done again: {problem}")
            elif record is not None:
                resume.num_images += record.counts.get("images", 0)
        return resume

    def forget(self, shards: Sequence[int]) -> None:
        """Take the commits of shards back: they count as never done, and no reader follows them any more."""
        for shard in shards:
            self._commit_path(shard).unlink(missing_ok=True)

    def files_of(self, table: str) -> list[str]:
        """Absolute paths of a table's committed files, in shard order."""
        return [str(self.root / record.files[table].path) for record in self.commits() if table in record.files]

    @property
    def finished(self) -> bool:
        """Every shard is committed and the manifest is written."""
        return (self.root / "_SUCCESS").exists()

    def reopen(self) -> None:
        """More shards are to come: take the mark of completion back."""
        (self.root / "_SUCCESS").unlink(missing_ok=True)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `manifest.json` (every committed file) and then `_SUCCESS`."""
        shards = []
        counts: dict[str, int] = {}
        for record in self.commits():
            shards.append({"shard": record.shard, "files": {n: vars(e) for n, e in record.files.items()}})
            for status, count in record.counts.items():
                counts[status] = counts.get(status, 0) + count
        replace_file(self.root / "manifest.json", to_json({**summary, "counts": counts, "shards": shards}))
        replace_file(self.root / "_SUCCESS", b"")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one job; first removes what killed writers left half-written.

        The lock goes with the process that holds it, however it ends.

        Raises:
            UserError: another live job holds it.
        """
        path = self.root / "_lock"
        with writing(path):
            self.root.mkdir(parents=True, exist_ok=True)
            stream = open(path, "a+")  # noqa: SIM115  # closed below, after the block of the caller
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                stream.seek(0)
                owner = stream.read().strip() or "another process"
                raise UserError(
                    f"--output {self.root} is in use by {owner}; wait for it, or choose another --output"
                ) from error
            with writing(path):
                stream.truncate(0)
                stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                stream.flush()
            for leaving in (*self.root.glob(".*.tmp"), *self.root.glob("*/.*.tmp")):
                leaving.unlink(missing_ok=True)
            yield
