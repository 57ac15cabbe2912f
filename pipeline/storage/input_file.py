"""Reading input files from storage that may fail: a failed read is tried again, and never taken for bad content."""

import contextlib
import errno
import io
import os
import time
from collections.abc import Callable
from typing import ClassVar, TypeVar

from pipeline.storage.paths import NotAFileError, open_regular

T = TypeVar("T")

PAUSES_SEC = (0.1, 0.4, 1.6)  # between the tries of one read
# Reads given up in a row after which the storage counts as gone: until one succeeds, no further read is paused for.
MAX_PATIENCE = 10
_MISSING = frozenset((errno.ENOENT, errno.ENOTDIR))
# Another try at once would say the same.
_DEFINITE = _MISSING | {errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}


class InputReadError(Exception):
    """The storage did not give an input's bytes. `reason` is the word in the errors table.

    It is no OSError: nobody between here and its handler takes it for malformed content or for an output that can't be
    written.
    """

    def __init__(self, path: str, error: OSError, position: int) -> None:
        if isinstance(error, NotAFileError):
            self.reason, message = "not_a_file", str(error)
        elif error.errno in _MISSING:
            self.reason, message = "missing_file", f"{path} does not exist"
        else:
            self.reason, message = "read_error", f"{path} can't be read at byte {position}: {error.strerror or error}"
        super().__init__(message)


def open_input(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open an input file for reading; its reads are tried again like the opening.

    Raises:
        InputReadError: it can't be opened; later, from any read, that it can't be read.
    """
    name = os.fspath(path)
    if "\0" in name:  # no file can be called so; Python's own refusal would be no OSError
        raise InputReadError(name, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), 0)
    return io.BufferedReader(_InputFile(name))


class _InputFile(io.RawIOBase):
    """A file that is opened anew after a failed read: the handle of a file server that came back is stale for ever."""

    _given_up: ClassVar[int] = 0  # reads in a row, of the whole process

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._position = 0
        self._handle: int | None = None
        self._patiently(lambda handle: None)

    def _patiently(self, call: Callable[[int], T]) -> T:
        pauses = iter(PAUSES_SEC if _InputFile._given_up < MAX_PATIENCE else ())
        while True:
            try:
                if self._handle is None:
                    self._handle = open_regular(self._path, os.O_RDONLY | os.O_CLOEXEC)
                result = call(self._handle)
            except NotAFileError as error:
                raise InputReadError(self._path, error, self._position) from error
            except OSError as error:
                self._let_go()
                pause = next(pauses, None)
                if error.errno in _DEFINITE or pause is None:
                    _InputFile._given_up += error.errno not in _DEFINITE
                    raise InputReadError(self._path, error, self._position) from error
                time.sleep(pause)
            else:
                _InputFile._given_up = 0
                return result

    def _let_go(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # a stale handle can fail to close, and is gone all the same
                os.close(self._handle)
            self._handle = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed asks for any writable buffer
        count = self._patiently(lambda handle: os.preadv(handle, [buffer], self._position))
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: lambda: 0, os.SEEK_CUR: lambda: self._position, os.SEEK_END: self._size}[whence]()
        if base + offset < 0:
            raise ValueError(f"a position of {base + offset}")
        self._position = base + offset
        return self._position

    def _size(self) -> int:
        return self._patiently(lambda handle: os.fstat(handle).st_size)

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._let_go()
        super().close()
