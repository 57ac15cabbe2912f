"""Summaries of large outputs, kept in one DuckDB file for each, so that questions about millions of rows take seconds.

A summary is a table without the columns that hold a list for each row's tokens. Everything here can be made anew from
committed files, which it neither changes nor lies beside. What is kept is known by what is committed: when that
changes, another file is made and the old one goes, so that none is ever out of date.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import dataset_of
from pipeline.errors import UserError
from pipeline.storage.local import LocalStore
from schemas.records import FileEntry
from schemas.views import quoted

_FORM = 1  # of the files; another one: they are made anew
_SHORT = 20  # digits of a hash that are enough to tell files of one user apart
_WORTH = 1_000_000  # rows from which reading the committed files takes longer than people like to wait
_ROWS_OF_A_FILE = 200  # that could be read in the time that opening a file takes


@dataclass(frozen=True)
class Part:
    """The committed tables of one artifact, by the names of their views."""

    artifact: Artifact
    tables: Mapping[str, tuple[pa.Schema, Sequence[FileEntry]]]

    def dataset(self, view: str, schema: pa.Schema | None = None, holds: ds.Expression | None = None) -> ds.Dataset:
        """A table, read from the committed files; with another schema than theirs where `holds` gives columns."""
        own, entries = self.tables[view]
        return dataset_of(self.artifact.store, [entry.path for entry in entries], schema or own, holds)

    @property
    def worth(self) -> int:
        """What it takes to read them, in rows."""
        return sum(entry.rows + _ROWS_OF_A_FILE for _, entries in self.tables.values() for entry in entries)

    @property
    def digest(self) -> str:
        """Of what is committed, and of what reads it."""
        held = {
            view: [cached_columns(schema), [(entry.path, entry.sha256) for entry in entries]]
            for view, (schema, entries) in self.tables.items()
        }
        return _hash(json.dumps([_FORM, duckdb.__version__, held]))


def cached_columns(schema: pa.Schema) -> list[str]:
    """The columns of a summary: those that are no lists, and lists of texts, which are short."""
    return [
        field.name for field in schema if not pa.types.is_list(field.type) or pa.types.is_string(field.type.value_type)
    ]


class SummaryCache:
    """Summaries in a folder of the user's.

    Args:
        folder: need not exist; where it can't be written, the committed files are read, which is said in one line.
        say: takes lines for the user.
        worth: rows, in all tables that are asked about, from which summaries are made.
    """

    def __init__(self, folder: str, say: Callable[[str], None], worth: int = _WORTH) -> None:
        self._store = LocalStore(folder)
        self._say = say
        self._worth = worth

    def attach(
        self, db: duckdb.DuckDBPyConnection, parts: Sequence[Part], memory_gib: float | None = None
    ) -> list[str] | None:
        """Open the summaries of all parts, to be read only, making those that are not there yet.

        Args:
            db: connection that opens them.
            parts: artifacts that will be asked about.
            memory_gib: that making them may hold, as of `connect`.

        Returns:
            The name of each part's database in the connection; None where there is to be no cache.
        """
        if sum(part.worth for part in parts) < self._worth:
            return None
        names: list[str] = []
        for number, part in enumerate(parts):
            name = f"summaries_{number}"
            if not (self._open(db, part, name) or (self._make(part, memory_gib) and self._open(db, part, name))):
                for attached in names:
                    db.execute(f"detach {attached}")
                return None
            names.append(name)
        return names

    def _open(self, db: duckdb.DuckDBPyConnection, part: Part, name: str) -> bool:
        key = _key(part)
        if self._store.stat(key) is None:
            return False
        try:
            db.execute(f"attach {quoted(self._store.locate(key))} as {name} (read_only)")
        except duckdb.Error as error:
            self._say(f"{self._store.locate(key)} can't be read and is made anew: {_first_line(error)}")
            return False
        return True

    def _make(self, part: Part, memory_gib: float | None) -> bool:
        """Gather the summaries of one artifact; whether that was possible."""
        started = time.perf_counter()
        key = _key(part)
        try:
            with self._store.new_file(key) as new:
                _gather(str(new.path), part, memory_gib)
            assert new.entry is not None, "it is in the store"
            for other in self._store.list(_folder(part)):
                if other.key != key:
                    self._store.delete(other.key)
        except UserError as error:
            self._say(f"summaries of {part.artifact.address} are not kept, which makes this slower: {error}")
            return False
        except (duckdb.Error, pa.ArrowException) as error:
            self._say(f"summaries of {part.artifact.address} could not be gathered: {_first_line(error)}")
            return False
        self._say(
            f"gathered summaries of {part.artifact.address} in {time.perf_counter() - started:.1f} s, for this query "
            f"and later ones: {self._store.locate(key)}, {new.entry.size_bytes / 1e6:,.0f} MB; it may be deleted"
        )
        return True


def _gather(path: str, part: Part, memory_gib: float | None) -> None:
    with duckdb.connect(path) as db:
        db.execute("set enable_progress_bar = false")
        if memory_gib is not None:
            db.execute(f"set memory_limit = '{memory_gib:f}GiB'")
        for view, (schema, _) in part.tables.items():
            db.register("committed", part.dataset(view))
            columns = ", ".join(f'"{name}"' for name in cached_columns(schema))
            db.execute(f"create table {view} as select {columns} from committed")
            db.unregister("committed")


def _folder(part: Part) -> str:
    return f"{_hash(part.artifact.address)}/"


def _key(part: Part) -> str:
    return f"{_folder(part)}{part.digest}.duckdb"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_SHORT]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
