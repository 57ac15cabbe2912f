"""The records of an artifact about its shards: what is committed, whether it is still as it was, what was given up.

_commits/00000017.json    the files of a shard, what is in them, what they were made from
_failures/00000017.json   why a shard that was given up is not among the commits
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import UserError
from pipeline.storage import Entry, LocalStore, Store
from pipeline.storage.places import folder_at
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
        root: the folder of the artifact, its address, or the store that holds it.
    """

    def __init__(self, root: Path | str | Store) -> None:
        self.store = store_of(root)

    @property
    def address(self) -> str:
        """Where the artifact lies, as people are told."""
        return self.store.locate()

    def commit(self, record: CommitRecord) -> None:
        """Make a shard exist: its files are in place, now its record appears, unless the same one is there already."""
        self.store.delete(_failure_key(record.shard))  # first: a shard is never found both committed and given up
        if self.store.create(_commit_key(record.shard), to_json(record)):
            return
        try:
            there = self.read_commit(record.shard)
        except RecordError:
            there = None
        if there is None or not _is_same(there, record):  # of an older try
            self.recommit(record)

    def recommit(self, record: CommitRecord) -> None:
        """Replace the record of a committed shard some of whose files were written anew."""
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
        try:
            text = self.store.read(_commit_key(shard))
        except FileNotFoundError:
            return None
        return self._commit_of(shard, text)

    def _commit_of(self, shard: int, text: bytes) -> CommitRecord:
        where = self.store.locate(_commit_key(shard))
        record = CommitRecord.from_json(text, where)
        if record.shard != shard:
            raise RecordError(f"{where} is the record of shard {record.shard}; it was copied or renamed")
        return record

    def read_commits(self, shards: Sequence[int]) -> Iterator[tuple[int, CommitRecord | RecordError | None]]:
        """The commit record of each of these shards, in order; or why it is damaged, or None where it is gone."""
        for shard, text in zip(shards, self.store.read_all(map(_commit_key, shards)), strict=True):
            try:
                yield shard, None if text is None else self._commit_of(shard, text)
            except RecordError as error:
                yield shard, error

    def commit_tags(self) -> dict[int, str]:
        """The tag of each commit record by its shard, ascending. The same tags as before: no record has changed."""
        return _commits_among(self.store.list(_COMMITS))

    def committed_shards(self) -> list[int]:
        """Numbers of all shards with a commit record, ascending."""
        return list(self.commit_tags())

    def commits(self) -> Iterator[CommitRecord]:
        """Every commit record, in shard order.

        Raises:
            UserError: a record is damaged.
        """
        for _, record in self.read_commits(self.committed_shards()):
            if isinstance(record, RecordError):
                raise UserError(f"{record}; run the job again with the same --output to redo that shard") from record
            if record is not None:
                yield record

    def forget(self, shards: Sequence[int]) -> None:
        """Take the commits of shards back: they count as never done, and no reader follows them any more."""
        for shard in shards:
            self.store.delete(_commit_key(shard))

    @contextmanager
    def opened(
        self, record: CommitRecord, table: str, used: dict[str, str] | None = None, *, in_parts: bool = False
    ) -> Iterator[BinaryIO]:
        """A committed file to read from: the one its record names, even if it is replaced meanwhile.

        Args:
            record: of the shard.
            table: whose file.
            used: takes the file's sha256, by its path in the artifact. All bytes are compared with it first, also where
                size and tag are as committed: what is made from the file says by this hash what it was made from.
            in_parts: the caller reads some parts and checks them itself, by the checksums of pages or those in the
                table `payloads`; all bytes are compared only where the tag is not as committed.

        Raises:
            RecordError: the record names no such file, it is missing, or another one lies in its place.
        """
        if table not in record.files:
            where = self.store.locate(_commit_key(record.shard))
            raise RecordError(f"{where} names no file of {table}; it was altered")
        entry = record.files[table]
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(self.store.open(entry.path))
            except FileNotFoundError as error:
                raise RecordError(f"{self.store.locate()}: {_missing(entry)}") from error
            size = stream.seek(0, os.SEEK_END)
            # Asked after the file was opened: if the tag is the committed one, it is that of the opened file too.
            found = self.store.stat(entry.path)
            same = (used is None or in_parts) and found is not None and found.tag == entry.tag
            problem = _other_size(entry, size) or (None if same else _other_bytes(entry, stream))
            if problem is not None:
                raise RecordError(f"{self.store.locate()}: {problem}")
            stream.seek(0)
            if used is not None:
                used[entry.path] = entry.sha256
            yield stream

    def listing(self) -> dict[str, Entry]:
        """Every file that lies there, by its key.

        A listing goes in the order of keys: what a shard that is being committed has written comes behind its record.
        """
        return {entry.key: entry for entry in self.store.walk()}

    def file_of(self, record: CommitRecord, table: str, listed: Mapping[str, Entry]) -> FileEntry:
        """A committed file of a table, which is looked at no further than its size.

        Args:
            record: of the shard.
            table: whose file.
            listed: as `listing` gives it.

        Raises:
            UserError: the record names no such file, or another one lies in its place.
        """
        entry = record.files.get(table)
        if entry is None:
            problem: str | None = f"the commit record of shard {record.shard:08d} names no file of {table}"
        else:
            found = listed.get(entry.path)
            problem = _missing(entry) if found is None else _other_size(entry, found.size_bytes)
            if problem is None:
                return entry
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

    def problem_among(self, files: Iterable[FileEntry], listed: Mapping[str, Entry]) -> str | None:
        """What is wrong with one of these files, or None; compares sha256 where the tag is another.

        Args:
            files: as they were written.
            listed: as `listing` gives it.
        """
        return self._first_problem(((entry, listed.get(entry.path)) for entry in files), deep=False)

    def _first_problem(self, files: Iterable[tuple[FileEntry, Entry | None]], deep: bool) -> str | None:
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

    def resume(
        self, shards: int | Sequence[int], *, deep: bool = False, sources: Mapping[str, str] | None = None
    ) -> Resume:
        """What is there and what is still to do: lists the store once and reads each commit record once.

        A shard whose record is damaged, whose files are missing or altered, or that was made from files that are not
        those in force, counts as never done.

        Args:
            shards: how many the job has in all, or their numbers where it does not have the first so many.
            deep: read every committed byte.
            sources: sha256 by path of the files in force that shards are made from; None where they are made from none.
        """
        listed = self.listing()
        committed = _commits_among(listed.values())
        wanted = range(shards) if isinstance(shards, int) else sorted(shards)
        resume = Resume(strays=sorted(committed.keys() - set(wanted)))
        expected = [shard for shard in wanted if shard in committed]
        problems: dict[int, str | None] = {}  # of shards that are done again; None: only made from other files
        for shard, record in self.read_commits(expected):
            if isinstance(record, CommitRecord):
                found = ((entry, listed.get(entry.path)) for entry in record.files.values())
                problem = self._first_problem(found, deep)
                if problem is None and (sources is None or made_from(record, sources)):
                    resume.num_images += record.counts.get("images", 0)
                    resume.num_ok += record.counts.get(Counted.SAMPLES.named(OK), 0)
                else:
                    problems[shard] = problem
            else:
                problems[shard] = "its commit record vanished" if record is None else str(record)
        resume.pending = [shard for shard in wanted if shard in problems or shard not in committed]
        for shard, problem in problems.items():
            resume.damaged.append(shard)
            if problem is None:
                resume.outdated.append(shard)
            else:
                resume.reasons.append(f"shard {shard:08d} is done again: {problem}")
        return resume


def _is_same(one: CommitRecord, other: CommitRecord) -> bool:
    """Whether two records say the same of a shard; how long it took does not matter."""
    return (one.files, one.counts, one.sources) == (other.files, other.counts, other.sources)


def _commits_among(entries: Iterable[Entry]) -> dict[int, str]:
    """The tags of those entries that are commit records, by shard, ascending."""
    found = ((_COMMIT_KEY.fullmatch(entry.key), entry.tag) for entry in entries)
    return dict(sorted((int(match[1]), tag) for match, tag in found if match is not None))


def store_of(root: Path | str | Store) -> Store:
    """The store over a folder, the one at an address, or the store that is given."""
    if isinstance(root, str):
        return folder_at(root)
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
