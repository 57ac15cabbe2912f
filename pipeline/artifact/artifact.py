"""The output folder: its job record, commit records, manifest, lock. Readers go through here, never through a glob."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UserError
from pipeline.storage.files import replace_file, sha256_of
from pipeline.storage.lock import hold
from schemas.records import CommitRecord, FileEntry, JobRecord, OtherVersionError, RecordError, to_json

_COMMIT_NAME = re.compile(r"[0-9]{8,}\.json")


@dataclass
class Resume:
    """What a rerun finds."""

    pending: list[int] = field(default_factory=list)  # shards still to do
    damaged: list[int] = field(default_factory=list)  # those of them that had been committed
    reasons: list[str] = field(default_factory=list)  # why they are done again
    outdated: list[int] = field(default_factory=list)  # sound, but made from files that are not those in force any more
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
            UserError: the record is damaged, or of another schema version.
        """
        path = self.root / "_job.json"
        try:
            return JobRecord.from_json(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OtherVersionError as error:
            raise UserError(
                f"{error}: another version of zoo-prune wrote it; read it with that version, "
                "or run its job anew into another --output"
            ) from error
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
            record = CommitRecord.from_json(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        if record.shard != shard:
            raise RecordError(f"{path} is the record of shard {record.shard}; it was copied or renamed")
        return record

    def committed_shards(self) -> list[int]:
        """Numbers of all shards with a commit record, ascending."""
        folder = self.root / "_commits"
        if not folder.is_dir():
            return []
        return sorted(int(p.stem) for p in folder.iterdir() if _COMMIT_NAME.fullmatch(p.name))

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

    def checked_commits(self) -> Iterator[CommitRecord]:
        """Every commit record, in shard order; of a finished artifact exactly those that its manifest lists.

        Raises:
            UserError: a record is damaged, or manifest and records differ.
        """
        listed = self._manifest_files() if self.finished else None
        differing = []
        for record in self.commits():
            if listed is not None and listed.pop(record.shard, None) != _files_json(record):
                differing.append(record.shard)
            yield record
        differing += listed or ()
        if differing and self.finished:  # else a job took completion back while this was read
            raise UserError(
                f"{self.root}: manifest.json and the commit record of shard {min(differing):08d} differ; "
                "delete _SUCCESS there and run the job again with the same --output to mend it"
            )

    def _manifest_files(self) -> dict[int, Any]:
        path = self.root / "manifest.json"
        try:
            return {entry["shard"]: entry["files"] for entry in json.loads(path.read_bytes())["shards"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is missing or damaged ({type(error).__name__}: {error}); "
                "delete _SUCCESS there and run the job again with the same --output to mend it"
            ) from error

    def committed_hashes(self) -> tuple[int, dict[str, str]]:
        """The number of shards, and each committed file's sha256 by its path. Raises as `checked_commits` does."""
        num_shards = 0
        hashes: dict[str, str] = {}
        for record in self.checked_commits():
            num_shards = record.shard + 1
            hashes.update((entry.path, entry.sha256) for entry in record.files.values())
        return num_shards, hashes

    @contextmanager
    def opened(self, record: CommitRecord, table: str, used: dict[str, str] | None = None) -> Iterator[BinaryIO]:
        """A committed file to read from: the one its record names, even if it is replaced meanwhile.

        Args:
            record: of the shard.
            table: whose file.
            used: takes the file's sha256, by its path in the artifact.

        Raises:
            RecordError: the record names no such file, or another one lies in its place.
        """
        if table not in record.files:
            raise RecordError(f"{self._commit_path(record.shard)} names no file of {table}; it was altered")
        entry = record.files[table]
        with open(self.root / entry.path, "rb") as stream:
            problem = _difference(
                entry, os.fstat(stream.fileno()), lambda: hashlib.file_digest(stream, "sha256").hexdigest()
            )
            if problem is not None:
                raise RecordError(f"{self.root}: {problem}")
            stream.seek(0)
            if used is not None:
                used[entry.path] = entry.sha256
            yield stream

    def file_of(self, record: CommitRecord, table: str) -> str:
        """Absolute path of a committed file, looked at no further than its size.

        Raises:
            UserError: the record names no such file, or another one lies in its place.
        """
        entry = record.files.get(table)
        path = str(self.root / entry.path) if entry is not None else ""
        if entry is None:
            problem = f"the commit record of shard {record.shard:08d} names no file of {table}"
        elif not os.path.exists(path):
            problem = f"{entry.path} is missing"
        elif (size := os.path.getsize(path)) != entry.size_bytes:
            problem = f"{entry.path} has {size} bytes, its commit record says {entry.size_bytes}"
        else:
            return path
        raise UserError(f"{self.root}: {problem}; run the job again with the same --output to redo that shard")

    def problem_of(self, record: CommitRecord, *, deep: bool = False) -> str | None:
        """What is wrong with a shard's files, or None.

        Args:
            record: of the shard.
            deep: read every byte and compare sha256; otherwise only where size or time of change differ.
        """
        for entry in record.files.values():
            path = self.root / entry.path
            try:
                problem = _difference(entry, path.stat(), partial(sha256_of, path), deep=deep)
            except FileNotFoundError:
                return f"{entry.path} is missing"
            if problem is not None:
                return problem
        return None

    def resume(self, num_shards: int, *, deep: bool = False, sources: Mapping[str, str] | None = None) -> "Resume":
        """What is there and what is still to do.

        A shard whose record is damaged, whose files are missing or altered, or that was made from files that are not
        those in force, counts as never done.

        Args:
            num_shards: shards the job has in all.
            deep: read every committed byte.
            sources: sha256 by path of the files in force that shards are made from; None where they are made from none.
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
            elif record is not None and sources is not None and not made_from(record, sources):
                resume.pending.append(shard)
                resume.damaged.append(shard)
                resume.outdated.append(shard)
            elif record is not None:
                resume.num_images += record.counts.get("images", 0)
        return resume

    def forget(self, shards: Sequence[int]) -> None:
        """Take the commits of shards back: they count as never done, and no reader follows them any more."""
        for shard in shards:
            self._commit_path(shard).unlink(missing_ok=True)

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
            shards.append({"shard": record.shard, "files": _files_json(record)})
            for status, count in record.counts.items():
                counts[status] = counts.get(status, 0) + count
        replace_file(self.root / "manifest.json", to_json({**summary, "counts": counts, "shards": shards}))
        replace_file(self.root / "_SUCCESS", b"")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one job; first removes what killed writers left half-written. Raises as `hold` does."""
        with hold(self.root):
            for leaving in (*self.root.glob(".*.tmp"), *self.root.glob("*/.*.tmp")):
                leaving.unlink(missing_ok=True)
            yield


def made_from(record: CommitRecord, sources: Mapping[str, str]) -> bool:
    """Whether each file a shard was made from is among those in force, sha256 by path."""
    return bool(record.sources) and record.sources.items() <= sources.items()


def _files_json(record: CommitRecord) -> dict[str, Any]:
    return {name: vars(entry) for name, entry in record.files.items()}


def _difference(
    entry: FileEntry, status: os.stat_result, sha256: Callable[[], str], *, deep: bool = False
) -> str | None:
    """How a file differs from what its commit record says; its bytes are read where size and time don't settle it."""
    if status.st_size != entry.size_bytes:
        return f"{entry.path} has {status.st_size} bytes, its commit record says {entry.size_bytes}"
    if (deep or status.st_mtime_ns != entry.mtime_ns) and sha256() != entry.sha256:
        return f"{entry.path} differs from the sha256 in its commit record"
    return None
