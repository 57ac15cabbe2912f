"""What an answer job asks that was given prompts of its own: they lie in its output, beside the answers.

    _asked.json                     the files of prompts by their shards, and what they were made from; written last
    prompts/part-00000017.parquet   rows of `schemas.asked.AskedRow` about images of the pruned shard of that number

Shards without prompts are not there. Answers name the file of prompts that they were made from among their sources.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import table_bytes
from pipeline.storage import Store
from schemas.records import CommitRecord, FileEntry, to_json
from schemas.tables import ASKED

RECORD = "_asked.json"
TABLE = "prompts"
_SOURCE = "asked/"  # before the paths of prompts among the sources of answers: pruned ones are called like them


@dataclass(frozen=True)
class Asked:
    """The prompts of an answer job, a file a shard."""

    made_from: str  # digest of the pruned files that were looked at
    files: Mapping[int, FileEntry]

    @property
    def sources(self) -> dict[str, str]:
        """sha256 of each file, as the answers to it name it among their sources."""
        return dict(source_of(entry) for entry in self.files.values())

    @property
    def rows(self) -> dict[int, int]:
        """The number of prompts of each shard, posed or not."""
        return {shard: entry.rows for shard, entry in self.files.items()}


def source_of(entry: FileEntry) -> tuple[str, str]:
    """How a file of prompts stands among the sources of the answers to it."""
    return f"{_SOURCE}{entry.path}", entry.sha256


def answered_from(record: CommitRecord, hashes: Mapping[str, str]) -> bool:
    """Whether a shard was answered from these pruned files, sha256 by path, and from the prompts that lie beside it."""
    own = dict([source_of(record.files[TABLE])]) if TABLE in record.files else {}
    return bool(record.sources) and all(
        hashes.get(path, own.get(path)) == sha256 for path, sha256 in record.sources.items()
    )


def digest_of(hashes: Mapping[str, str]) -> str:
    """Of committed files, sha256 by path."""
    return hashlib.sha256(to_json(hashes)).hexdigest()


def read_record(store: Store) -> Asked | None:
    """What `_asked.json` says; None where there is none, or one that was altered: it can be made anew."""
    try:
        data = json.loads(store.read(RECORD))
        return Asked(data["made_from"], {int(shard): FileEntry(**entry) for shard, entry in data["files"].items()})
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_asked(artifact: Artifact, shard: int, rows: pa.Table, before: FileEntry | None) -> FileEntry:
    """Write the prompts of a shard, unless they lie there; answers to other ones are taken back first.

    Args:
        artifact: of the answers; the caller holds it.
        shard: number.
        rows: of `ASKED`, at least one.
        before: what lay there when the record was written.
    """
    data = table_bytes(rows)
    sha256 = hashlib.sha256(data).hexdigest()
    if before is not None and before.sha256 == sha256:
        found = artifact.store.stat(before.path)
        if artifact.problem_among([before], {} if found is None else {before.path: found}) is None:
            return before
    drop_asked(artifact, shard)
    entry = artifact.store.put(_key(shard), data)
    return FileEntry(entry.key, len(rows), entry.size_bytes, entry.tag, sha256)


def drop_asked(artifact: Artifact, shard: int) -> None:
    """Take a shard's prompts and the answers to them back."""
    artifact.reopen()
    artifact.forget([shard])
    artifact.store.delete(_key(shard))


def write_record(store: Store, asked: Asked) -> None:
    """Make files of prompts count."""
    files = {str(shard): vars(entry) for shard, entry in asked.files.items()}
    store.put(RECORD, to_json({"made_from": asked.made_from, "files": files}))


def read_asked(artifact: Artifact, shard: int, entry: FileEntry, used: dict[str, str]) -> pa.Table:
    """The prompts of a shard, rows of `schemas.asked.AskedRow`; their file goes into `used`, see `source_of`.

    Raises:
        RecordError: another file lies in its place.
    """
    with artifact.opened(CommitRecord(shard, {TABLE: entry}, {}), TABLE, {}) as stream:
        rows = pq.read_table(stream)
    used.update([source_of(entry)])
    return rows.cast(ASKED)


def _key(shard: int) -> str:
    return f"{TABLE}/part-{shard:08d}.parquet"
