"""What may be named where a file is meant: a path or an `s3://` address, and nothing that is waited on for ever."""

import os
import re
import stat
from pathlib import Path

from pipeline.errors import UserError

# One slash is what normalising a path leaves of two; `pipe:` is WebDataset's, `data:` a picture within its own name.
_URL = re.compile(r"\s*(?:[a-z][a-z0-9+.-]+:/|(?:pipe|data):)", re.IGNORECASE)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
OBJECTS = "s3://"
_OBJECT = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.ASCII | re.DOTALL)
# What to do instead of naming a URL.
WRITE_INSTEAD = "write to a disk that every node mounts and copy the folder afterwards"
READ_INSTEAD = "copy it to a disk that every node mounts and name it there"

_SHOWN = 200  # characters of a URL that a message repeats


class NotAFileError(OSError):
    """The path leads to something that is no regular file; `kind` says to what, as "a FIFO"."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(f"{path} is {kind}, not a regular file")
        self.kind = kind


def is_url(text: str) -> bool:
    """Whether `text` names something by a scheme (`s3://`, `hf://`, `file://`, `pipe:`, ...) and not by a path."""
    return _URL.match(text) is not None


def is_object(location: str) -> bool:
    """Whether a location is one of an object store."""
    return location.startswith(OBJECTS)


def split_object(location: str) -> tuple[str, str]:
    """The bucket and the key of an `s3://` location, in which `.`, `..` and `//` mean what they do in paths.

    Raises:
        ValueError: it has another form.
    """
    found = _OBJECT.fullmatch(location)
    if found is None:
        raise ValueError("expected s3://BUCKET/KEY, a bucket having 3 to 63 of the letters a-z, 0-9, . and -")
    key = os.path.normpath(f"/{found[2] or ''}").lstrip("/")
    return found[1], key


def object_location(bucket: str, key: str) -> str:
    """The location of a key, or of the bucket where it is empty."""
    return f"{OBJECTS}{bucket}/{key}" if key else f"{OBJECTS}{bucket}"


def as_address(option: str, text: str, instead: str) -> str:
    """What a user gave as a folder, as it can be used from any place: an absolute path, or an `s3://` address.

    Raises:
        UserError: it is another URL, or a malformed address.
    """
    if not is_object(text):
        refuse_url(option, text, instead)
        return str(Path(text).expanduser().absolute())
    try:
        return object_location(*split_object(text))
    except ValueError as error:
        raise UserError(f"{option} {text[:_SHOWN]}: {error}") from error


def refuse_url(option: str, text: str, instead: str) -> None:
    """Refuse a URL where a path is meant.

    Args:
        option: that it was given to.
        text: as the user gave it.
        instead: what to do, as the end of a sentence.

    Raises:
        UserError: it is one.
    """
    if is_url(text):
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        raise UserError(f"{option} {shown} is a URL; only paths and s3://BUCKET/KEY are understood: {instead}")


def open_regular(path: str, flags: int) -> int:
    """Open a regular file, as `os.open` does; never waits, as opening a FIFO would.

    Raises:
        NotAFileError: it is something else.
    """
    _check(path, os.stat(path).st_mode)  # merely opening a device can have an effect
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        _check(path, os.fstat(descriptor).st_mode)
    except NotAFileError:
        os.close(descriptor)
        raise
    return descriptor


def _check(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFileError(path, next((name for holds, name in _KINDS if holds(mode)), "no file"))
