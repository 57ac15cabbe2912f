"""An artifact, the output of a job: its job record, its shards, its manifest, its lock.

Readers go through here, never through a glob.

    _job.json        what was asked for, of which model; written before anything else
    _commits/ ...    one record a shard, see `pipeline.artifact.ledger`; they name the data files
    manifest.json    every committed file, when all shards are committed
    _SUCCESS         written last
    _lock            held by the job that works on the artifact, whom it names
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from pipeline.artifact.index import INDEX_RECORD
from pipeline.artifact.ledger import FAILURES, Ledger, Resume, made_from
from pipeline.errors import UserError
from pipeline.storage import HeldError, StorageError
from schemas.records import CommitRecord, JobRecord, OtherVersionError, OwnerRecord, RecordError, to_json
from schemas.wording import counted

__all__ = ["Artifact", "Resume", "drop_strays", "made_from"]

_JOB = "_job.json"
_MANIFEST = "manifest.json"
_SUCCESS = "_SUCCESS"
_LOCK = "_lock"


class Artifact(Ledger):
    """Committed shards under one job record."""

    def read_job(self) -> JobRecord | None:
        """The job record, or None when there is none.

        Raises:
            UserError: the record is damaged, or of another schema version.
        """
        try:
            if self.store.stat(_JOB) is None:
                return None
            return JobRecord.from_json(self.store.read(_JOB), self.store.locate(_JOB))
        except OtherVersionError as error:
            raise UserError(
                f"{error}: another version of zoo-prune wrote it; read it with that version, "
                "or run its job anew into another --output"
            ) from error
        except RecordError as error:
            raise UserError(f"{error}; restore it, or start again in another --output") from error
        except OSError as error:
            where = f"{self.store.locate()} can't be read: {error.strerror or error}"
            advice = "" if isinstance(error, StorageError) else "; let this user read it, or name another folder"
            raise UserError(f"{where}{advice}") from error

    def require_job(self, kind: str, option: str) -> JobRecord:
        """The job record of an artifact made by `kind` ("prune", "answer" or "grade").

        Raises:
            UserError: no such artifact.
        """
        job = self.read_job()
        if job is None or job.kind != kind:
            a_job = {"prune": "a prune job", "answer": "an answer job", "grade": "a grade job"}[kind]
            if job is not None:
                what = f"is the output of another job ({job.kind})"
            else:
                what = f"holds no {_JOB}" if self.store.names() else "is empty, or does not exist"
            raise UserError(f"{option} {self.store.locate()}: {what}; name the --output of {a_job}")
        return job

    def check_job(self, job: JobRecord) -> JobRecord | None:
        """The job record of the artifact, None when there is none yet that anything was done by.

        Raises:
            UserError: the artifact belongs to other settings, or its folder holds files of something else.
        """
        old = self.read_job()
        where = self.store.locate()
        if old is None:
            if any(name != _LOCK for name in self.store.names()):
                raise UserError(f"--output {where} holds files but no {_JOB}; choose an empty or new folder")
            return None
        if old.kind != job.kind:
            raise UserError(
                f"--output {where} is the output of another job ({old.kind}); choose an empty or new folder"
            )
        differences = old.differences(job)
        if differences:
            if not self._is_begun(old):
                return None
            raise UserError(
                f"--output {where} was started with other settings:\n  "
                + "\n  ".join(differences)
                + "\nrepeat the old settings to resume it, or choose another --output"
            )
        return old

    def _is_begun(self, job: JobRecord) -> bool:
        """Whether anything hangs on the settings of a job that began here.

        One that was refused while it indexed has no index: nobody can have begun a shard of it, nor still be
        writing one. An answer job has its shards from the beginning.
        """
        return job.kind != "prune" or self.store.stat(INDEX_RECORD) is not None or bool(self.committed_shards())

    def adopt_job(self, job: JobRecord) -> JobRecord:
        """Write the job record unless there is one; returns the one in force. Raises as `check_job` does."""
        old = self.check_job(job)
        if old is None:
            self.store.put(_JOB, to_json(job))
        return old or job

    def resolve(self, job: JobRecord, **found: Any) -> JobRecord:
        """Write into the job record in force what "auto" came to; returns it."""
        resolved = replace(job, resolved={**job.resolved, **found})
        self.store.put(_JOB, to_json(resolved))
        return resolved

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
                f"{self.store.locate()}: {_MANIFEST} and the commit record of shard {min(differing):08d} differ; "
                "run its job again with the same --output to mend it"
            )

    def manifest_holds(self) -> bool:
        """Whether the manifest is there, whole, and lists exactly what is committed."""
        try:
            for _ in self.checked_commits():
                pass
        except UserError:
            return False
        return self.finished

    def read_manifest(self) -> dict[str, Any]:
        """What the manifest says of a finished artifact.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            data = json.loads(self.store.read(_MANIFEST))
        except (OSError, ValueError) as error:
            raise self._no_manifest(error) from error
        if not isinstance(data, dict):
            raise self._no_manifest(TypeError("it is no JSON object"))
        return data

    def _manifest_files(self) -> dict[int, Any]:
        try:
            return {entry["shard"]: entry["files"] for entry in self.read_manifest()["shards"]}
        except (KeyError, TypeError) as error:
            raise self._no_manifest(error) from error

    def _no_manifest(self, error: Exception) -> UserError:
        return UserError(
            f"{self.store.locate(_MANIFEST)} is missing or damaged ({type(error).__name__}: {error}); "
            "run its job again with the same --output to mend it"
        )

    @property
    def finished(self) -> bool:
        """Every shard is committed and the manifest is written."""
        return self.store.stat(_SUCCESS) is not None and self.store.stat(_MANIFEST) is not None

    def reopen(self) -> None:
        """More shards are to come: take the mark of completion back."""
        self.store.delete(_SUCCESS)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the manifest, which lists every committed file, and then the mark of completion."""
        shards = []
        counts: dict[str, int] = {}
        for record in self.commits():
            shards.append({"shard": record.shard, "files": _files_json(record)})
            for status, count in record.counts.items():
                counts[status] = counts.get(status, 0) + count
        self.store.clear(FAILURES)  # a worker can die between its commit and its word of it
        self.store.put(_MANIFEST, to_json({**summary, "counts": counts, "shards": shards}))
        self.store.put(_SUCCESS, b"")

    def owner(self) -> OwnerRecord | None:
        """Who holds the artifact, or was killed while it did; None where nobody does. Looks without taking the lock."""
        return _owner(self.store.holder(_LOCK), self.store.locate(_LOCK))

    @contextmanager
    def locked(self, tell: Callable[[str], None] = lambda _: None) -> Iterator["Artifact"]:
        """Hold the artifact for one job; first removes what killed writers left half-written.

        The block gets the artifact as its holder writes to it; see `pipeline.storage.Store.hold`.

        Args:
            tell: takes one line for the user.

        Raises:
            UserError: another live job holds it, or it can't be locked or written.
        """
        me = OwnerRecord(os.getpid(), socket.gethostname(), time.time())
        with ExitStack() as held:
            try:
                store = held.enter_context(self.store.hold(_LOCK, to_json(me).decode(), tell))
            except HeldError as error:
                owner = _owner(error.owner, self.store.locate(_LOCK)) or "another process"
                raise UserError(
                    f"--output {self.store.locate()} is in use by {owner}; wait for it, or choose another --output"
                ) from error
            store.clear_unfinished()
            yield Artifact(store)


def drop_strays(artifact: Artifact, resume: Resume, num_shards: int, say: Callable[[str], None]) -> None:
    """Remove commit records of shards that the job does not have; the caller holds the artifact."""
    for shard in resume.strays:
        say(f"the commit record of shard {shard:08d} is removed: this output has {counted(num_shards, 'shards')}")
    artifact.forget(resume.strays)


def _owner(text: str, where: str) -> OwnerRecord | None:
    """What a lock says of its owner; None where it says nothing, or what another version wrote."""
    try:
        return OwnerRecord.from_json(text, where)
    except RecordError:
        return None


def _files_json(record: CommitRecord) -> dict[str, Any]:
    return {name: vars(entry) for name, entry in record.files.items()}
