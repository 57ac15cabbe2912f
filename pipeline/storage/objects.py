"""Objects under a prefix of a bucket, as a place with files under keys."""

import contextlib
import errno
import io
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from pipeline.errors import UserError
from pipeline.storage.bucket import Bucket, Found, bucket
from pipeline.storage.lease import Body, Hold, Lease
from pipeline.storage.object_file import ObjectFile
from pipeline.storage.paths import object_location, split_object
from pipeline.storage.store import Entry, NewFile, StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

READERS = 16  # requests at once where many objects are read
PIECE_BYTES = 8 << 20  # of an object that is fetched to a file


@dataclass(frozen=True)
class ObjectStore:
    """A `Store` over a prefix of a bucket, which need not exist; the bucket must."""

    bucket: str
    prefix: str = ""  # of all keys; empty, or ending in "/"
    held: Hold | None = None  # nothing is written unless this hold is still in force

    @classmethod
    def at(cls, address: str) -> Self:
        """The store whose root is at an address."""
        name, key = split_object(address)
        return cls(name, f"{key}/" if key else "")

    @property
    def _bucket(self) -> Bucket:
        return bucket(self.bucket)

    def _key(self, key: str) -> str:
        if key.startswith("/") or (".." in key and ".." in key.split("/")):
            raise ValueError(f"key {key!r} leaves the store {self.locate()}")
        return f"{self.prefix}{key}"

    def _entry(self, key: str, found: Found) -> Entry:
        return Entry(key.removeprefix(self.prefix), found.size_bytes, found.tag)

    def locate(self, key: str = "") -> str:
        """The address of a key, as `s3://BUCKET/KEY`."""
        return object_location(self.bucket, f"{self.prefix}{key}" if key else self.prefix.rstrip("/"))

    def stat(self, key: str) -> Entry | None:
        """The object under a key, None when there is none. Its tag is the store's."""
        found = self._bucket.head(self._key(key))
        return None if found is None else self._entry(self._key(key), found)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The objects directly under a prefix."""
        objects, _ = self._bucket.below(self._key(prefix))
        return (self._entry(key, found) for key, found in objects)

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        """The objects under a prefix, by one listing of a request for each 1000."""
        return (self._entry(key, found) for key, found in self._bucket.walk(self._key(prefix)))

    def names(self, prefix: str = "") -> Sequence[str]:
        """What lies directly under a prefix; what ends in "/" is a prefix."""
        place = self._key(prefix)
        objects, prefixes = self._bucket.below(place)
        return sorted(key.removeprefix(place) for key in (*(key for key, _ in objects), *prefixes))

    def read(self, key: str) -> bytes:
        """All bytes of an object, in one request."""
        return self._bucket.get(self._key(key)).data

    def read_all(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """All bytes of each object; some are asked for at once, in the order of the keys."""

        def read(key: str) -> bytes | None:
            try:
                return self.read(key)
            except FileNotFoundError:
                return None

        left = iter(keys)
        with ThreadPoolExecutor(READERS) as pool:
            ahead = deque(pool.submit(read, key) for key in islice(left, 2 * READERS))
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(read, key) for key in islice(left, 1))

    def open(self, key: str) -> BinaryIO:
        """An object as a stream, which gives its bytes as they were when it was opened, or fails."""
        return io.BufferedReader(self.raw(key))

    def raw(self, key: str) -> io.RawIOBase:
        """An object as a stream that fetches ranges of it, ahead of what is read."""
        return ObjectFile(self._bucket, self._key(key))

    def arrow(self) -> "FileSystem":
        """A file system of Arrow over this store."""
        from pipeline.storage.arrow import file_system  # here, so that storage need not wait for Arrow

        return file_system(self)

    @contextlib.contextmanager
    def local(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Copies of the objects in a temporary folder."""
        with self.scratch() as folder:
            paths = [str(folder / f"{number:08d}-{key.rpartition('/')[2]}") for number, key in enumerate(keys)]
            with ThreadPoolExecutor(READERS) as pool:
                list(pool.map(self._fetch, keys, paths))
            yield paths

    def _fetch(self, key: str, path: str) -> None:
        with self.open(key) as stream, open(path, "wb") as copy:
            while piece := stream.read(PIECE_BYTES):
                copy.write(piece)

    def put(self, key: str, data: bytes) -> Entry:
        """Write an object, in place of an older one."""
        with self._writing():
            return Entry(key, len(data), self._bucket.put(self._key(key), data))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one."""
        with self._writing():
            return self._bucket.put_if(self._key(key), data, None) is not None

    @contextlib.contextmanager
    def new_file(self, key: str) -> Iterator[NewFile]:
        """Write to a temporary file here, which is sent at the end of the block."""
        with self.scratch() as folder:
            new = NewFile(folder / "new")
            yield new
            with self._writing():
                size_bytes = new.path.stat().st_size
                new.entry = Entry(key, size_bytes, self._bucket.put(self._key(key), new.path))

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        with self._writing():
            self._bucket.delete([self._key(key)])

    def clear(self, prefix: str) -> None:
        """Remove all objects under a prefix."""
        with self._writing():
            self._bucket.delete([key for key, _ in self._bucket.walk(self._key(prefix))])

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder of this machine."""
        try:
            with tempfile.TemporaryDirectory(prefix="zoo-prune-") as folder:
                yield Path(folder)
        except StorageError:
            raise
        except OSError as error:
            place = tempfile.gettempdir()
            told = UserError(
                f"{place}, where files lie before they are sent to {self.locate()}, can't be written: "
                f"{error.strerror or error}; make room there, or name another folder in TMPDIR, then run the same "
                "command again to resume"
            )
            raise told from error

    @contextlib.contextmanager
    def hold(self, key: str, owner: str, tell: Callable[[str], None] = lambda _: None) -> Iterator[Self]:
        """Hold a key by a lease, see `pipeline.storage.lease`."""
        lease = Lease(self._bucket, self._key(key), owner)
        with self._writing():
            lease.take(tell)
        try:
            yield replace(self, held=lease.hold)
        finally:
            lease.let_go()

    def holder(self, key: str) -> str:
        """What the lease says of its owner, who may have died since."""
        try:
            body = Body.from_json(self.read(key))
        except FileNotFoundError:
            return ""
        return "" if body is None else body.owner

    def clear_unfinished(self) -> None:
        """Nothing is half-written: objects appear whole."""

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """See that the hold is in force, and tell a place that can't be written from other errors."""
        try:
            if self.held is not None:
                self.held.require(self._bucket)
            yield
        except StorageError as error:
            told = UserError(
                f"{self.locate()} can't be written: {error.strerror}; nothing half-written is left; mend that, then "
                "run the same command again to resume"
            )
            told.passing = error.errno == errno.EIO
            raise told from error
