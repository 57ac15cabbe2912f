"""Fetching the encoded bytes of images from where they lie: in a file of their own, or in a range of a larger one."""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Protocol, Self

from pipeline.corpus.cells import ParquetCells
from pipeline.corpus.decode import DecodeError, image_size
from pipeline.corpus.packed import DamagedError, PackedFile
from pipeline.storage.input_file import InputReadError, open_input

_HEAD_BYTES = 256 << 10  # of an image that are kept while it is hashed; the headers of most lie in them


@dataclass(frozen=True, slots=True)
class Place:
    """Where the encoded bytes of an image lie."""

    path: str  # location of the file that holds them
    offset: int | None = None  # where in that file they begin; None: they are the whole file
    size: int | None = None  # how many they are
    # None: `offset` counts the file's bytes. `gzip:BEGIN:BASE`, `zstd:BEGIN:BASE`: it counts what the compressed file
    # unpacks to, of which byte BASE is the first that byte BEGIN of the file gives. `parquet:COLUMN`: it counts rows.
    within: str | None = None


class Packed(Protocol):
    """An open file that holds images in another form than as a run of its bytes."""

    def take(self, offset: int, size: int | None, rest: str) -> bytes:
        """What lies at a place; cheap where it follows on what was taken before."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


_FORMS: Mapping[str, Callable[[str], Packed]] = {
    "gzip": partial(PackedFile, "gzip"),
    "zstd": partial(PackedFile, "zstd"),
    "parquet": ParquetCells,
}


@dataclass(frozen=True, slots=True)
class Inspected:
    """What one pass over an image's encoded bytes tells."""

    image_id: str  # their sha256 in lower-case hex
    size: int  # how many they are
    width: int | None  # as its header says; None: it names no size that can be decoded
    height: int | None


def inspect(stream: BinaryIO) -> Inspected:
    """Hash an image's encoded bytes and read its size from its header; of large images nothing more is kept.

    Args:
        stream: at the first of the bytes, which go on to its end; it can be sought.

    Raises:
        InputReadError: the storage does not give them.
    """
    head = stream.read(_HEAD_BYTES)
    digest = hashlib.sha256(head)
    size = len(head)
    while piece := stream.read(_HEAD_BYTES):
        digest.update(piece)
        size += len(piece)
    found = image_size(io.BytesIO(head))
    if found is None and size > len(head):  # the header is longer, or at the end as TIFF may have it
        stream.seek(0)
        found = image_size(stream)
    width, height = found or (None, None)
    return Inspected(digest.hexdigest(), size, width, height)


def hash_image(place: Place | str) -> Inspected:
    """Inspect the encoded bytes of an image where they lie; a text is the location of a file that is all theirs.

    Raises:
        InputReadError: the storage does not give them.
        DamagedError: the file that they lie in is damaged before them.
    """
    place = Place(place) if isinstance(place, str) else place
    if place.offset is None:
        with open_input(place.path) as stream:
            return inspect(stream)
    with Fetcher() as fetcher:
        return inspect(io.BytesIO(fetcher.bytes_at(place)))


class Fetcher:
    """Gives the encoded bytes of images.

    Images within one compressed or columnar file are given in one pass over it, if they are asked for in the order in
    which they lie there; an image that lies before the last one costs a new beginning.
    """

    def __init__(self) -> None:
        self._within: tuple[str, str] | None = None  # file and form of what is open
        self._open: Packed | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._open is not None:
            self._open.close()
        self._within = self._open = None

    def read(self, place: Place, image_id: str) -> bytes:
        """The encoded bytes of an image, proven to be the ones that were indexed.

        Args:
            place: where they lie.
            image_id: their sha256 when they were indexed.

        Raises:
            DecodeError: `missing_file`, `not_a_file`, `read_error`, or `changed_file` when the bytes have another hash
                now or the file is damaged.
        """
        try:
            data = self.bytes_at(place)
        except InputReadError as error:
            raise DecodeError(error.reason, str(error)) from error
        except DamagedError as error:
            raise DecodeError("changed_file", f"{place.path} can't be read as when it was indexed: {error}") from error
        if hashlib.sha256(data).hexdigest() != image_id:
            raise DecodeError("changed_file", f"{place.path} holds other bytes than when it was indexed")
        return data

    def bytes_at(self, place: Place) -> bytes:
        """What lies at a place, whatever it is.

        Raises:
            InputReadError: the storage does not give it.
            DamagedError: the file that it lies in is damaged before it.
        """
        if place.within is None:
            with open_input(place.path) as stream:
                if place.offset is None:
                    return stream.read()
                stream.seek(place.offset)
                return stream.read(place.size)
        assert place.offset is not None, "what lies within a file has a position there"
        form, _, rest = place.within.partition(":")
        if self._within != (place.path, form) or self._open is None:
            self._let_go()
            self._open = _FORMS[form](place.path)
            self._within = place.path, form
        try:
            return self._open.take(place.offset, place.size, rest)
        except (InputReadError, DamagedError):
            self._let_go()
            raise


def read_bytes(place: Place, image_id: str) -> bytes:
    """The encoded bytes of one image, as `Fetcher.read` gives them."""
    with Fetcher() as fetcher:
        return fetcher.read(place, image_id)
