"""Streams of compressed files, unpacked as they are read: a gzip of members, a zstd of frames, one or many.

Nothing is unpacked to disk. Reading can begin again where a member or a frame begins, so a file of many is read from
the last of them that begins before what is wanted, a file of one from its first byte.
"""

import io
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import pyarrow as pa

from pipeline.storage.input_file import open_input

PIECE_BYTES = 256 << 10
HELD_PIECES = 3  # of what was unpacked last: going back a little costs nothing
RESTART_BYTES = 1 << 20  # unpacked between two places where reading can begin again, at least
MAX_RATIO = 200  # of unpacked to packed bytes, beyond the first 64 MB
FREE_BYTES = 64 << 20


class DamagedError(ValueError):
    """The content of a file is not what its form asks for; its message says where."""


class Unpacked(io.RawIOBase):
    """What a compressed file unpacks to, as a stream that seeks forward by unpacking, and a little way back for free.

    Args:
        path: location of the file.
        form: "gzip" or "zstd".
        begin: byte of the file at which a member or frame begins.
        base: how many bytes the file unpacks to before it.

    Raises:
        InputReadError: the storage does not give the file.
    """

    def __init__(self, path: str, form: str, begin: int = 0, base: int = 0) -> None:
        super().__init__()
        self.form = form
        self._unpack = _UNPACKERS[form]
        self._file = open_input(path)
        self._restarts = [(base, begin)]
        self._start(base, begin)
        self._position = base

    def _start(self, base: int, begin: int) -> None:
        self._file.seek(begin)
        self._steps = self._unpack(self._file)
        self._held: deque[tuple[int, bytes]] = deque(maxlen=HELD_PIECES)
        self._begin, self._base = begin, base
        self._end = base  # how far it is unpacked

    def restart_before(self, offset: int) -> tuple[int, int]:
        """Where to begin to read what lies at an offset: byte of the file, and what it unpacks to before that."""
        base, begin = self._restarts[bisect_right(self._restarts, (offset, self._file_end)) - 1]
        return begin, base

    _file_end = 1 << 62

    def _unpack_more(self) -> bool:
        """Unpack one piece; whether there was one."""
        try:
            for step in self._steps:
                if isinstance(step, int):
                    if self._end - self._restarts[-1][0] >= RESTART_BYTES:
                        self._restarts.append((self._end, step))
                    continue
                self._held.append((self._end, step))
                self._end += len(step)
                consumed = self._file.tell() - self._begin
                if self._end - self._base > FREE_BYTES + MAX_RATIO * consumed:
                    raise DamagedError(
                        f"byte {self._begin + consumed} of the file: it unpacks to over {MAX_RATIO} times its size, "
                        "which images do not; it is taken for a decompression bomb"
                    )
                return True
        except (zlib.error, pa.ArrowException, OSError) as error:
            raise DamagedError(f"byte {self._file.tell()} of the file: {' '.join(str(error).split())[:200]}") from error
        return False

    def readable(self) -> bool:
        """Whether bytes can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether the position can be set: yes."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes from the position on, fewer only at the end.

        Raises:
            InputReadError: the storage does not give the file.
            DamagedError: the file is damaged.
        """
        parts = []
        while size is None or size < 0 or size > 0:
            part = self._some()
            if not part:
                break
            if size is not None and size >= 0:
                part = part[:size]
                size -= len(part)
            self._position += len(part)
            parts.append(part)
        return b"".join(parts)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed asks for any writable buffer
        """Read on from the position; the number of bytes, 0 at the end."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _some(self) -> bytes:
        """Bytes from the position on; none at the end."""
        if self._position < (self._held[0][0] if self._held else self._end):
            base, begin = self._restarts[bisect_right(self._restarts, (self._position, self._file_end)) - 1]
            self._start(base, begin)
        while self._position >= self._end:
            if not self._unpack_more():
                return b""
        for begins, piece in reversed(self._held):
            if begins <= self._position:
                return piece[self._position - begins :]
        raise AssertionError("the pieces that are held follow on each other")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, counted from the beginning or from itself; where that lies shows when it is read."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of what is unpacked is not known")
        position = offset + (self._position if whence == io.SEEK_CUR else 0)
        if position < 0:
            raise ValueError(f"a position of {position}")
        self._position = position
        return position

    def tell(self) -> int:
        """The position."""
        return self._position

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        super().close()


class PackedFile:
    """Runs of bytes of what a compressed file unpacks to. See `pipeline.corpus.fetch.Packed`."""

    def __init__(self, form: str, path: str) -> None:
        self._form, self._path = form, path
        self._stream: Unpacked | None = None

    def take(self, offset: int, size: int | None, rest: str) -> bytes:
        """The bytes at an offset.

        Args:
            offset: in what the file unpacks to.
            size: how many they are.
            rest: `BEGIN:BASE`, where reading can begin.

        Raises:
            InputReadError: the storage does not give the file.
            DamagedError: the file is damaged.
        """
        begin, base = map(int, rest.split(":"))
        if self._stream is None or not base <= self._stream.tell() <= offset:
            self.close()
            self._stream = Unpacked(self._path, self._form, begin, base)
        self._stream.seek(offset)
        return self._stream.read(size)

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None


# Unpackers yield where in the file a member or frame begins, then what it unpacks to in pieces.
Steps = Iterator[int | bytes]


def _gunzip(file: BinaryIO) -> Steps:
    packed = file.read(PIECE_BYTES)
    while packed:
        yield file.tell() - len(packed)
        unpacker = zlib.decompressobj(wbits=31)
        while not unpacker.eof:
            piece = unpacker.decompress(packed, PIECE_BYTES)
            packed = unpacker.unconsumed_tail
            if piece:
                yield piece
            if not packed and not unpacker.eof:
                packed = file.read(PIECE_BYTES)
                if not packed and not piece:
                    raise DamagedError(f"byte {file.tell()} of the file: it breaks off there")
        packed = unpacker.unused_data or file.read(PIECE_BYTES)
        while packed and not packed.strip(b"\0"):  # padding, which gzip allows
            packed = file.read(PIECE_BYTES)


def _unzstd(file: BinaryIO) -> Steps:
    while True:
        frame = _Frame(file)
        begin = file.tell()
        if not frame.begins():
            return
        if frame.is_skippable:
            continue
        yield begin
        with pa.CompressedInputStream(frame, "zstd") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
        if not frame.ended:
            raise DamagedError(f"byte {file.tell()} of the file: it breaks off there")


_MAGIC, _SKIPPABLE = 0xFD2FB528, 0x184D2A50
_RLE, _RESERVED = 1, 3


class _Frame(io.RawIOBase):
    """The bytes of one zstd frame out of a file that may hold many, as RFC 8878 lays them out."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._ready = b""  # to be given before anything else is read
        self._left = 0  # of the block
        self._last = False
        self._checksum = 0
        self.is_skippable = self.ended = False

    def begins(self) -> bool:
        """Read the header; whether there is one, and not the end of the file. What may be skipped is."""
        magic = self._file.read(4)
        if not magic:
            return False
        number = int.from_bytes(magic, "little")
        if number & ~0xF == _SKIPPABLE:
            self._file.seek(int.from_bytes(self._exactly(4), "little"), io.SEEK_CUR)
            self.is_skippable = True
            return True
        if number != _MAGIC:
            raise DamagedError(f"byte {self._file.tell() - len(magic)} of the file: no zstd frame begins there")
        descriptor = self._exactly(1)
        flags = descriptor[0]
        single = bool(flags & 0x20)
        size_bytes = (1 if single else 0, 2, 4, 8)[flags >> 6]
        rest = self._exactly((0 if single else 1) + (0, 1, 2, 4)[flags & 3] + size_bytes)
        self._checksum = 4 if flags & 4 else 0
        self._ready = magic + descriptor + rest
        return True

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise DamagedError(f"byte {self._file.tell()} of the file: it breaks off there")
        return data

    def readable(self) -> bool:
        """Whether bytes can be read: yes."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes of the frame; none behind its end."""
        parts: list[bytes] = []
        wanted = PIECE_BYTES if size is None or size < 0 else size
        while wanted > 0 and not (self.ended and not self._ready):
            if self._ready:
                part, self._ready = self._ready[:wanted], self._ready[wanted:]
            elif self._left:
                part = self._file.read(min(self._left, wanted))
                if not part:
                    break  # the file breaks off, which the unpacker sees
                self._left -= len(part)
            else:
                self._next_block()
                continue
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    def _next_block(self) -> None:
        if self._last:
            self._ready = self._exactly(self._checksum)
            self.ended = True
            return
        header = self._exactly(3)
        number = int.from_bytes(header, "little")
        self._last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
        if kind == _RESERVED:
            raise DamagedError(f"byte {self._file.tell() - 3} of the file: no zstd block begins there")
        self._ready, self._left = header, 1 if kind == _RLE else size


_UNPACKERS: Mapping[str, Callable[[BinaryIO], Steps]] = {"gzip": _gunzip, "zstd": _unzstd}
