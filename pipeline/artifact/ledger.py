"""The records of an artifact about its shards: what is committed, whether it is still as it was, what was given up.

_commits/00000017.json    the files of a shard, what is in them, what they were made from
_failures/00000017.json   why a shard that was given up is not among the commits
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import UserError
from pipeline.storage import Entry, LocalStore, Store
from schemas.records import CommitRecord, FailureRecord, FileEntry, RecordError, to_json
from schemas.statuses import OK, Counted

_COMMITS = "_commits/"
FAILURES = "_failures/"
_PIECE_BYTES = 1 << 20  # read at a time where a file is hashed
_COMMIT_KEY = re.compile(rf"{_COMMITS}([0-9]{{8,}})\.json")


@dataclass
class Resume:
    """What a rerun finds."""

    pending: list[int] = field(default_factory=list)  # shards still to do
    damaged: list[int] = field(default_factory=list)  # those of them that had been committed
    reasons: list[str] = field(default_factory=list)  # why they are done again
    outdated: list[int] = field(default_factory=list)  # sound, but made from files that are not those in force any more
    strays: list[int] = field(default_factory=list)  # commit records of shards that the job does not have
    num_images: int = 0  # distinct images of the shards that are done
    num_ok: int = 0  # input samples of those shards that did not fail


class Ledger:
    """Which shards of an artifact are committed, and whether their files are still those that were committed.

    Args:
        root: the folder of the artifact, or the store that holds it.
    """

    def __init__(self, root: Path | Store) -> None:
        self.store = store_of(root)

    @property
    def root(self) -> Path:
        """The folder of the artifact."""
        return Path(self.store.locate())

    def commit(self, record: CommitRecord) -> None:
        """Make a shard exist: its files are in place, now its record appears."""
        self.store.delete(_failure_key(record.shard))  # first: a shard is never found both committed and given up
        self.store.put(_commit_key(record.shard), to_json(record))

    def give_up(self, record: FailureRecord) -> None:
        """Note why a shard was given up, until it is committed."""
        self.store.put(_failure_key(record.shard), to_json(record))

    def given_up(self) -> Iterator[FailureRecord]:
        """Why each shard that was given up is not among the commits, in shard order. Damaged records are left out."""
        for entry in self.store.list(FAILURES):
            try:
                yield FailureRecord.from_json(self.store.read(entry.key), self.store.locate(entry.key))
            except (FileNotFoundError, RecordError):  # it was committed meanwhile; or people changed it, for whom it is
                continue

    @property
    def failures(self) -> str:
        """Where the records of shards that were given up lie."""
        return self.store.locate(FAILURES)

    def read_commit(self, shard: int) -> CommitRecord | None:
        """The commit record of a shard, or None when the shard has not happened.

        Raises:
            RecordError: the record is damaged.
        """
        key = _commit_key(shard)
        where = self.store.locate(key)
        try:
            record = CommitRecord.from_json(self.store.read(key), where)
        except FileNotFoundError:
            return None
        if record.shard != shard:
            raise RecordError(f"{where} is the record of shard {record.shard}; it was copied or renamed")
        return record

    def commit_tags(self) -> dict[int, str]:
        """The tag of each commit record by its shard, ascending. The same tags as before: no record has changed."""
        found = ((_COMMIT_KEY.fullmatch(entry.key), entry.tag) for entry in self.store.list(_COMMITS))
        return dict(sorted((int(match[1]), tag) for match, tag in found if match is not None))

    def committed_shards(self) -> list[int]:
        """Numbers of all shards with a commit record, ascending."""
        return list(self.commit_tags())

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

    def forget(self, shards: Sequence[int]) -> None:
        """Take the commits of shards back: they count as never done, and no reader follows them any more."""
        for shard in shards:
            self.store.delete(_commit_key(shard))

    @contextmanager
    def opened(self, record: CommitRecord, table: str, used: dict[str, str] | None = None) -> Iterator[BinaryIO]:
        """A committed file to read from: the one its record names, even if it is replaced meanwhile.

        Args:
            record: of the shard.
            table: whose file.
            used: takes the file's sha256, by its path in the artifact. All bytes are compared with it first, also where
                size and tag are as committed: what is made from the file says by this hash what it was made from.

        Raises:
            RecordError: the record names no such file, or another one lies in its place.
        """
        if table not in record.files:
            where = self.store.locate(_commit_key(record.shard))
            raise RecordError(f"{where} names no file of {table}; it was altered")
        entry = record.files[table]
        with self.store.open(entry.path) as stream:
            size = stream.seek(0, os.SEEK_END)
            # Asked after the file was opened: if the tag is the committed one, it is that of the opened file too.
            found = self.store.stat(entry.path)
            same = used is None and found is not None and found.tag == entry.tag
            problem = _other_size(entry, size) or (None if same else _other_bytes(entry, stream))
            if problem is not None:
                raise RecordError(f"{self.store.locate()}: {problem}")
            stream.seek(0)
            if used is not None:
                used[entry.path] = entry.sha256
            yield stream

    def file_of(self, record: CommitRecord, table: str) -> str:
        """Address of a committed file, which is looked at no further than its size.

        Raises:
            UserError: the record names no such file, or another one lies in its place.
        """
        entry = record.files.get(table)
        if entry is None:
            problem: str | None = f"the commit record of shard {record.shard:08d} names no file of {table}"
        else:
            found = self.store.stat(entry.path)
            problem = _missing(entry) if found is None else _other_size(entry, found.size_bytes)
            if problem is None:
                return self.store.locate(entry.path)
        raise UserError(
            f"{self.store.locate()}: {problem}; run the job again with the same --output to redo that shard"
        )

    def problem_of(self, record: CommitRecord, *, deep: bool = False) -> str | None:
        """What is wrong with a shard's files, or None.

        Args:
            record: of the shard.
            deep: read every byte and compare sha256; otherwise only where size or tag differ.
        """
        found = ((entry, self.store.stat(entry.path)) for entry in record.files.values())
        return self._first_problem(found, deep)

    def _first_problem(self, files: Iterator[tuple[FileEntry, Entry | None]], deep: bool) -> str | None:
        for entry, found in files:
            problem = _missing(entry) if found is None else _other_size(entry, found.size_bytes)
            if problem is None and found is not None and (deep or found.tag != entry.tag):
                try:
                    with self.store.open(entry.path) as stream:
                        problem = _other_bytes(entry, stream)
                except FileNotFoundError:  # it went meanwhile
                    problem = _missing(entry)
            if problem is not None:
                return problem
        return None

    def resume(self, num_shards: int, *, deep: bool = False, sources: Mapping[str, str] | None = None) -> Resume:
        """What is there and what is still to do: lists each folder once and reads each commit record once.

        A shard whose record is damaged, whose files are missing or altered, or that was made from files that are not
        those in force, counts as never done.

        Args:
            num_shards: shards the job has in all.
            deep: read every committed byte.
            sources: sha256 by path of the files in force that shards are made from; None where they are made from none.
        """
        committed = set(self.committed_shards())
        resume = Resume(strays=sorted(shard for shard in committed if shard >= num_shards))
        listed = _Listed(self.store)
        for shard in range(num_shards):
            if shard not in committed:
                resume.pending.append(shard)
                continue
            problem: str | None = "its commit record vanished"
            try:
                record = self.read_commit(shard)
            except RecordError as error:
                record, problem = None, str(error)
            if record is not None:
                found = ((entry, listed.entry(entry.path)) for entry in record.files.values())
                problem = self._first_problem(found, deep)
                if problem is None and (sources is None or made_from(record, sources)):
                    resume.num_images += record.counts.get("images", 0)
                    resume.num_ok += record.counts.get(Counted.SAMPLES.named(OK), 0)
                    continue
            resume.pending.append(shard)
            resume.damaged.append(shard)
            if problem is None:
                resume.outdated.append(shard)
            else:
                resume.reasons.append(f"shard {shard:08d} is done again: {problem}")
        return resume


class _Listed:
    """The files of a store, each folder as it was when a file in it was first asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folders: dict[str, dict[str, Entry]] = {}

    def entry(self, key: str) -> Entry | None:
        folder = key[: key.rfind("/") + 1]
        if folder not in self._folders:
            self._folders[folder] = {entry.key: entry for entry in self._store.list(folder)}
        return self._folders[folder].get(key)


def store_of(root: Path | Store) -> Store:
    """The store over a folder, or the store that is given."""
    return LocalStore(root) if isinstance(root, Path) else root


def made_from(record: CommitRecord, sources: Mapping[str, str]) -> bool:
    """Whether each file a shard was made from is among those in force, sha256 by path."""
    return bool(record.sources) and record.sources.items() <= sources.items()


def _commit_key(shard: int) -> str:
    return f"{_COMMITS}{shard:08d}.json"


def _failure_key(shard: int) -> str:
    return f"{FAILURES}{shard:08d}.json"


def _missing(entry: FileEntry) -> str:
    return f"{entry.path} is missing"


def _other_size(entry: FileEntry, size_bytes: int) -> str | None:
    if size_bytes == entry.size_bytes:
        return None
    return f"{entry.path} has {size_bytes} bytes, its commit record says {entry.size_bytes}"


def _other_bytes(entry: FileEntry, stream: BinaryIO) -> str | None:
    digest = hashlib.sha256()
    stream.seek(0)
    while piece := stream.read(_PIECE_BYTES):
        digest.update(piece)
    if digest.hexdigest() == entry.sha256:
        return None
    return f"{entry.path} differs from the sha256 in its commit record"
