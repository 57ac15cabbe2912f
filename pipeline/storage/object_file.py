"""An object as a file that is read by ranges, more of them at a time the longer it is read on."""

import io
import os

from pipeline.storage.bucket import Bucket

FIRST_BYTES = 256 << 10
MOST_BYTES = 8 << 20


class ObjectFile(io.RawIOBase):
    """An object as it was when it was opened.

    Where reading goes on, or begins anew, a little more is fetched than is asked for; twice as much each time that it
    goes on behind what was fetched last.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it can't be read, or, from a later read, it was replaced since.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        super().__init__()
        found = bucket.head(key)
        if found is None:
            raise FileNotFoundError(2, os.strerror(2), bucket.locate(key))
        self._bucket, self._key, self._tag = bucket, key, found.tag
        self.size_bytes = found.size_bytes
        self._position = 0
        self._begin, self._held = 0, b""
        self._ahead = FIRST_BYTES

    def readable(self) -> bool:
        """Whether bytes can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether the position can be set: yes."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, counted from the beginning, from itself or from the end. Asks nobody."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"a position of {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed asks for any writable buffer
        """Read on from the position; the number of bytes, 0 at the end of the object."""
        if self._position >= self.size_bytes or not len(buffer):
            return 0
        end = self._begin + len(self._held)
        if not self._begin <= self._position < end:
            self._fetch(len(buffer), goes_on=self._position == end)
        begin = self._position - self._begin
        piece = memoryview(self._held)[begin : begin + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self, wanted: int, *, goes_on: bool) -> None:
        self._ahead = min(2 * self._ahead, MOST_BYTES) if goes_on and self._held else FIRST_BYTES
        end = min(self.size_bytes, self._position + max(wanted, self._ahead))
        self._held = self._bucket.get(self._key, self._position, end, self._tag).data
        self._begin = self._position
