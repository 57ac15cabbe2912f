"""Files under a local folder, or under a shared POSIX file system mounted alike on every node."""

import contextlib
import errno
import fcntl
import io
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from pipeline.errors import UserError
from pipeline.storage.paths import open_regular
from pipeline.storage.store import Entry, HeldError, NewFile

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_IN_THE_WAY = frozenset((errno.EEXIST, errno.ENOTDIR))
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_FORBIDDEN = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))
# The place's fault, not the data's: trying again at once would not help.
_CANNOT_WRITE = _IN_THE_WAY | _FULL | _FORBIDDEN
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL))
_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))
_UNFINISHED = ".tmp"  # names that begin with a dot and end so are half-written
_SCRATCH = ".scratch-"


class LocalStore:
    """A `Store` over a folder, which need not exist before something is written."""

    def __init__(self, root: Path | str) -> None:
        self._root = os.fspath(root)

    def __repr__(self) -> str:
        return f"LocalStore({self._root!r})"

    def _name(self, key: str) -> str:
        if key.startswith("/") or (".." in key and ".." in key.split("/")):
            raise ValueError(f"key {key!r} leaves the store {self._root}")
        return os.path.join(self._root, key) if key else self._root

    def _path(self, key: str = "") -> Path:
        return Path(self._name(key))

    def locate(self, key: str = "") -> str:
        """The absolute path of a key."""
        return str(self._path(key))

    def stat(self, key: str) -> Entry | None:
        """The regular file under a key, None when there is none. Its tag is its time of modification."""
        try:
            status = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _entry(key, status) if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The finished files directly under a prefix, in the order of their names."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._path(prefix)) as found:
            for item in sorted(found, key=lambda one: one.name):
                if item.is_file() and not _is_unfinished(item.name):
                    yield _entry(f"{prefix}{item.name}", item.stat())

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        """The finished files under a prefix, each folder listed once; scratch folders are left out."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._path(prefix)) as found:
            for item in sorted(found, key=lambda one: f"{one.name}/" if one.is_dir() else one.name):
                if item.is_dir():
                    if not item.name.startswith(_SCRATCH):
                        yield from self.walk(f"{prefix}{item.name}/")
                elif item.is_file() and not _is_unfinished(item.name):
                    yield _entry(f"{prefix}{item.name}", item.stat())

    def names(self, prefix: str = "") -> Sequence[str]:
        """The finished files and the folders directly under a prefix; none where that is no folder."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._path(prefix)) as found:
            return sorted(f"{one.name}/" if one.is_dir() else one.name for one in found if not _is_unfinished(one.name))
        return []

    def read(self, key: str) -> bytes:
        """All bytes of a file."""
        with self.open(key) as stream:
            return stream.read()

    def read_all(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """All bytes of each file, one after the other."""
        for key in keys:
            try:
                yield self.read(key)
            except FileNotFoundError:
                yield None

    def open(self, key: str) -> BinaryIO:
        """A regular file as a stream. Raises NotAFileError for a FIFO, a device, a folder: reading might never end."""
        return io.BufferedReader(self.raw(key))

    def raw(self, key: str) -> io.FileIO:
        """A regular file as an unbuffered stream over one open descriptor. Raises as `open` does."""
        name = self._name(key)
        if "\0" in name:  # no file can be called so; Python's own refusal would be no OSError
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return io.FileIO(name, "r", opener=open_regular)

    def arrow(self) -> "FileSystem":
        """Arrow's own file system, seen from the folder."""
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem  # here, so that storage need not wait for Arrow

        return SubTreeFileSystem(os.path.abspath(self._root), LocalFileSystem())

    @contextlib.contextmanager
    def local(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """The paths of the files themselves."""
        yield [self.locate(key) for key in keys]

    def put(self, key: str, data: bytes) -> Entry:
        """Write a file, in place of an older one."""
        with self.new_file(key) as new:
            new.path.write_bytes(data)
        assert new.entry is not None, "set when the block ended"
        return new.entry

    def create(self, key: str, data: bytes) -> bool:
        """Write a file unless there is one: a hard link is refused where the name is taken."""
        with self._half_written(key) as temporary:
            temporary.write_bytes(data)
            _flush(temporary)
            try:
                os.link(temporary, self._path(key))
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if self.stat(key) is not None:
                    return False
                os.replace(temporary, self._path(key))  # such a file system leaves it to the hold to keep writers apart
            return True

    @contextlib.contextmanager
    def new_file(self, key: str) -> Iterator[NewFile]:
        """Write beside the final name, flush to the disk, rename. The last of two writers wins, neither is mixed up."""
        with self._half_written(key) as temporary:
            new = NewFile(temporary)
            yield new
            _flush(temporary)
            new.entry = _entry(key, os.stat(temporary))
            os.replace(temporary, self._path(key))

    @contextlib.contextmanager
    def _half_written(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_UNFINISHED}")
        with _writing(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                yield temporary
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()

    def delete(self, key: str) -> None:
        """Remove a file if it is there."""
        with _writing(self._path(key)):
            self._path(key).unlink(missing_ok=True)

    def clear(self, prefix: str) -> None:
        """Remove a folder with all that it holds, if it is there."""
        folder = self._path(prefix)
        with _writing(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the data, where there is as much room as for them."""
        root = self._path()
        with _writing(root):
            root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def hold(self, key: str, owner: str, tell: Callable[[str], None] = lambda _: None) -> Iterator[Self]:
        """Hold a key by a lock on its file, which the system takes back when the process ends, however it ends."""
        path, root = self._path(key), self._path()
        with _writing(root):  # the folder, of which the user knows; not the lock in it
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(path, "a+")  # noqa: SIM115  # closed below, after the block of the caller
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                raise HeldError(stream.read().strip() or "another process") from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                raise UserError(
                    f"{path} can't be locked: {os.strerror(error.errno)}; mount its file system with locking, or take "
                    "a folder on another one"
                ) from error
            with _writing(root):
                stream.truncate(0)
                stream.write(owner + "\n")
                stream.flush()
            try:
                yield self
            finally:
                with contextlib.suppress(OSError):  # a name that stays is that of a process which has let go or died
                    stream.truncate(0)

    def holder(self, key: str) -> str:
        """What stands in the locked file."""
        try:
            return self.read(key).decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def clear_unfinished(self) -> None:
        """Remove temporary files here and one folder down, and scratch folders."""
        root = self._path()
        for leaving in (*root.glob(f".*{_UNFINISHED}"), *root.glob(f"*/.*{_UNFINISHED}")):
            leaving.unlink(missing_ok=True)
        for folder in root.glob(f"{_SCRATCH}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _entry(key: str, status: os.stat_result) -> Entry:
    return Entry(key, status.st_size, str(status.st_mtime_ns))


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(_UNFINISHED)


def _flush(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell a file system that can't be written from other errors."""
    try:
        yield
    except OSError as error:
        told = UserError(f"{path} can't be written: {_cause_and_remedy(path, error)}")
        told.passing = error.errno not in _CANNOT_WRITE
        raise told from error


def _cause_and_remedy(path: Path, error: OSError) -> str:
    in_the_way = [one for one in (path, *path.parents) if one.exists() and not one.is_dir()]
    if error.errno in _IN_THE_WAY and in_the_way:
        return f"{in_the_way[0]} is a file where a folder must be; name another folder, or move the file away"
    cause = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        remedy = "make room"
    elif error.errno in _FORBIDDEN:
        remedy = "allow this user to write there, or name another folder"
    elif error.errno == errno.ENOENT:
        remedy = "name a folder that can be made"
    else:
        remedy = "mend its storage"
    return f"{cause}; nothing half-written is left; {remedy}, then run the same command again to resume"
