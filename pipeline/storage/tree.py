"""Folders of input files."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.storage.input_file import InputReadError


def is_folder(location: str) -> bool:
    """Whether a location is that of a folder."""
    return os.path.isdir(location)


@dataclass(frozen=True, slots=True)
class Found:
    """A file under a folder."""

    name: str  # seen from the folder
    size_bytes: int
    leads_out: bool = False  # it is a link to something outside of the folder


def tree(folder: str) -> Iterator[Found]:
    """The files under a folder, however deep, in the order of their names; those whose name begins with a dot excepted.

    Links to folders are not followed. What is no regular file, or a link to nothing, has a size of 0.

    Raises:
        InputReadError: a folder can't be listed.
    """
    real = os.path.realpath(folder)
    for name in _walk(folder, ""):
        path = os.path.join(folder, name)
        leads_out = False
        if os.path.islink(path):
            leads_out = os.path.commonpath([real, os.path.realpath(path)]) != real
        try:
            size = os.stat(path).st_size
        except OSError:  # reading it says why
            size = 0
        yield Found(name, size, leads_out)


def _walk(folder: str, prefix: str) -> Iterator[str]:
    try:
        with os.scandir(os.path.join(folder, prefix)) as found:
            entries = [
                (f"{one.name}/" if one.is_dir(follow_symlinks=False) else one.name)
                for one in found
                if not one.name.startswith(".") and not (one.is_symlink() and one.is_dir())
            ]
    except OSError as error:
        raise InputReadError(os.path.join(folder, prefix), error, 0) from error
    for name in sorted(entries):
        if name.endswith("/"):
            yield from _walk(folder, prefix + name)
        else:
            yield prefix + name
