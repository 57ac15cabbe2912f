"""Fetching the encoded bytes of images from where they lie: in a file of their own, or in a range of a larger one."""

import hashlib
import io
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.corpus.decode import DecodeError, image_size
from pipeline.storage.input_file import InputReadError, open_input

_HEAD_BYTES = 256 << 10  # of an image that are kept while it is hashed; the headers of most lie in them


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


def hash_image(location: str, offset: int | None = None, size: int | None = None) -> Inspected:
    """Inspect the encoded bytes of an image where they lie.

    Args:
        location: of the file that holds them.
        offset: where in that file they begin; None when they are the whole file.
        size: how many they are; None when they are the whole file.

    Raises:
        InputReadError: the storage does not give them.
    """
    if offset is not None:
        return inspect(io.BytesIO(_bytes_at(location, offset, size)))
    with open_input(location) as stream:
        return inspect(stream)


def read_bytes(location: str, offset: int | None, size: int | None, image_id: str) -> bytes:
    """An image's encoded bytes, proven to be the ones that were indexed.

    Args:
        location: of the file that holds them.
        offset: where in that file they begin; None when they are the whole file.
        size: how many they are.
        image_id: their sha256 when they were indexed.

    Raises:
        DecodeError: `missing_file`, `not_a_file`, `read_error`, or `changed_file` when the bytes have another hash now.
    """
    try:
        data = _bytes_at(location, offset, size)
    except InputReadError as error:
        raise DecodeError(error.reason, str(error)) from error
    if hashlib.sha256(data).hexdigest() != image_id:
        raise DecodeError("changed_file", f"{location} holds other bytes than when it was indexed")
    return data


def _bytes_at(location: str, offset: int | None, size: int | None) -> bytes:
    with open_input(location) as stream:
        if offset is None:
            return stream.read()
        stream.seek(offset)
        return stream.read(size)
