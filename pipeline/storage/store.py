"""What the pipeline asks of a place that holds a corpus or an artifact.

A key is a path relative to the store's root with "/" between its parts. Files appear whole or not at all, are replaced
as a whole and never appended to; whether one has changed is told by an opaque tag, and who may write is told by a hold.
Nothing else may be relied on: an object store has no rename, no file lock and no time of modification.
A store is handed to workers on other nodes, so it can be pickled, and it opens nothing before it is used.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:  # what only names a store need not wait for Arrow
    from pyarrow.fs import FileSystem


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a store."""

    key: str
    size_bytes: int
    tag: str  # opaque; an equal tag means the same bytes, another one means: compare their hash


@dataclass(slots=True)
class NewFile:
    """A file that is being made: write it to `path`, a local one; `entry` is there once it is in the store."""

    path: Path
    entry: Entry | None = None

    def open(self) -> BinaryIO:
        """The file as a stream to write to."""
        return open(self.path, "wb")

    def sha256(self) -> str:
        """Lower-case hex sha256 of what is written; only before the file is in the store."""
        with open(self.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class StorageError(OSError):
    """The place does not do what it is asked for; `strerror` says why, as a clause, and `filename` of what."""


class HeldError(Exception):
    """Another live process holds the key; `owner` is what that process said of itself."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


class Store(Protocol):
    """A place with files under keys.

    Reading methods raise FileNotFoundError for a key that is not there, and another OSError where the place does not
    give the bytes. Writing methods raise UserError where the place can't be written: full, over quota, read-only, not
    permitted; `passing` where the next try may succeed.
    """

    def locate(self, key: str = "") -> str:
        """The address of a key as a person, DuckDB or pyarrow takes it; it need not exist."""
        ...

    def stat(self, key: str) -> Entry | None:
        """The file under a key, None when there is none."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The files directly under a prefix that ends in "/" (or under the root), in the order of their keys."""
        ...

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        """The files under a prefix that ends in "/" (or under the root), however deep, in the order of their keys."""
        ...

    def names(self, prefix: str = "") -> Sequence[str]:
        """What lies directly under a prefix or the root, half-written files excepted; what ends in "/" is a prefix."""
        ...

    def read(self, key: str) -> bytes:
        """All bytes of a file."""
        ...

    def read_all(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """All bytes of each of many small files, in the order of the keys; None for one that is not there."""
        ...

    def open(self, key: str) -> BinaryIO:
        """A file as a stream that can seek; the caller closes it."""
        ...

    def raw(self, key: str) -> io.RawIOBase:
        """A file as an unbuffered stream that can seek: each read asks the place once, and may give fewer bytes."""
        ...

    def arrow(self) -> "FileSystem":
        """The store as Arrow reads it, where keys are paths."""
        ...

    def local(self, keys: Sequence[str]) -> AbstractContextManager[Sequence[str]]:
        """Paths of files for what can open nothing else, for the time of the block: copies where the place has none."""
        ...

    def put(self, key: str, data: bytes) -> Entry:
        """Write a file, in place of the one under that key if there is one."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write a file unless there is one under that key; whether it was written. Of two callers one is told True."""
        ...

    def new_file(self, key: str) -> AbstractContextManager[NewFile]:
        """Make a file too large for memory: it enters the store when the block ends without an exception."""
        ...

    def delete(self, key: str) -> None:
        """Remove the file under a key; nothing happens when there is none."""
        ...

    def clear(self, prefix: str) -> None:
        """Remove everything under a prefix that ends in "/", however deep, half-written files too."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """A local folder for large temporary files, removed at the end of the block."""
        ...

    def hold(self, key: str, owner: str, tell: Callable[[str], None] = ...) -> AbstractContextManager["Store"]:
        """Hold a key against every other process for the time of the block; the hold ends with its process.

        The block gets the store as its holder writes to it, also from other processes that are handed it: where a hold
        can be lost to somebody else, nothing is written through it any more once it was.

        Args:
            key: that is held.
            owner: what the holder says of itself, see `holder`.
            tell: takes one line for the user, where it takes long to see whether another holder lives.

        Raises:
            HeldError: another live process holds it.
        """
        ...

    def holder(self, key: str) -> str:
        """What the process said of itself that holds a key, or was killed while it did; empty where nobody does."""
        ...

    def clear_unfinished(self) -> None:
        """Remove what killed writers left half-written. Only the holder of the store may call this."""
        ...
