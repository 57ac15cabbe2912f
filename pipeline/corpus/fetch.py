"""Fetching the encoded bytes of images from where they lie: in a file of their own, or in a range of a larger one."""

import hashlib

from pipeline.corpus.decode import DecodeError
from pipeline.storage.input_file import InputReadError, open_input


def hash_image(location: str, offset: int | None = None, size: int | None = None) -> tuple[str, int]:
    """The sha256 of an image's encoded bytes in lower-case hex, and their number.

    Args:
        location: of the file that holds them.
        offset: where in that file they begin; None when they are the whole file.
        size: how many they are; None when they are the whole file.

    Raises:
        InputReadError: the storage does not give them.
    """
    if offset is not None:
        data = _bytes_at(location, offset, size)
        return hashlib.sha256(data).hexdigest(), len(data)
    with open_input(location) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()


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
