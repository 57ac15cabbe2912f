"""Reading input files from storage that may fail: a failed read is tried again, and never taken for bad content."""

import contextlib
import errno
import io
import os
import time
from collections.abc import Callable
from typing import ClassVar, TypeVar

from pipeline.storage.paths import NotAFileError
from pipeline.storage.places import at
from pipeline.storage.store import Store

T = TypeVar("T")

PAUSES_SEC = (0.1, 0.4, 1.6)  # between the tries of one read
# Reads given up in a row after which the storage counts as gone: until one succeeds, no further read is paused for.
MAX_PATIENCE = 10
_MISSING = frozenset((errno.ENOENT, errno.ENOTDIR))
# Another try at once would say the same.
_DEFINITE = _MISSING | {errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENODEV}


class InputReadError(Exception):
    """The storage did not give an input's bytes.

    `reason` is the word in the errors table, `kind` what lies there in place of a regular file, as "a FIFO".

    It is no OSError: nobody between here and its handler takes it for malformed content or for an output that can't be
    written.
    """

    def __init__(self, location: str, error: OSError, position: int) -> None:
        self.kind = error.kind if isinstance(error, NotAFileError) else None
        if self.kind is not None:
            self.reason, message = "not_a_file", f"{location} is {self.kind}, not a regular file"
        elif error.errno in _MISSING:
            self.reason, message = "missing_file", f"{location} does not exist"
        else:
            self.reason = "read_error"
            message = f"{location} can't be read at byte {position}: {error.strerror or error}"
        super().__init__(message)


def open_input(location: str) -> io.BufferedReader:
    """Open an input file for reading; its reads are tried again like the opening.

    Raises:
        InputReadError: it can't be opened; later, from any read, that it can't be read.
    """
    store, key = at(location)
    return io.BufferedReader(PatientFile(store, key, location))


class PatientFile(io.RawIOBase):
    """A file of any store, opened anew after a failed read.

    The handle of a file server that came back is stale for ever, and so may be the connection to an object store.
    """

    _given_up: ClassVar[int] = 0  # reads in a row, of the whole process

    def __init__(self, store: Store, key: str, location: str) -> None:
        super().__init__()
        self._store, self._key, self._location = store, key, location
        self._position = 0
        self._stream: io.RawIOBase | None = None
        self._patiently(lambda stream: None)

    def _patiently(self, call: Callable[[io.RawIOBase], T]) -> T:
        pauses = iter(PAUSES_SEC if PatientFile._given_up < MAX_PATIENCE else ())
        while True:
            try:
                if self._stream is None:
                    self._stream = self._store.raw(self._key)
                result = call(self._stream)
            except NotAFileError as error:
                raise InputReadError(self._location, error, self._position) from error
            except OSError as error:
                self._let_go()
                pause = next(pauses, None)
                if error.errno in _DEFINITE or pause is None:
                    PatientFile._given_up += error.errno not in _DEFINITE
                    raise InputReadError(self._location, error, self._position) from error
                time.sleep(pause)
            else:
                PatientFile._given_up = 0
                return result

    def _let_go(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # a stale handle can fail to close, and is gone all the same
                self._stream.close()
            self._stream = None

    def readable(self) -> bool:
        """Whether bytes can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether the position can be set: yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed asks for any writable buffer
        """Read on from the position; the number of bytes, 0 at the end of the file."""
        count = self._patiently(lambda stream: self._read(stream, buffer))
        self._position += count
        return count

    def _read(self, stream: io.RawIOBase, buffer: memoryview) -> int:
        stream.seek(self._position)
        count: int = stream.readinto(buffer)
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, counted from the beginning, from itself or from the end."""
        base = {os.SEEK_SET: lambda: 0, os.SEEK_CUR: lambda: self._position, os.SEEK_END: self._size}[whence]()
        if base + offset < 0:
            raise ValueError(f"a position of {base + offset}")
        self._position = base + offset
        return self._position

    def _size(self) -> int:
        return self._patiently(lambda stream: stream.seek(0, os.SEEK_END))

    def tell(self) -> int:
        """The position."""
        return self._position

    def close(self) -> None:
        """Let go of the file."""
        self._let_go()
        super().close()
