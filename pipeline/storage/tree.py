"""Folders of input files."""

import contextlib
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
    size_bytes: int  # 0 where sizes were not asked for
    leads_out: bool = False  # it is a link to something outside of the folder


def tree(folder: str, *, sizes: bool = False) -> Iterator[Found]:
    """The files under a folder, however deep, in the order of their names; those whose name begins with a dot excepted.

    Links to folders are not followed. Without sizes no file is asked for anything: a folder costs one listing. What is
    no regular file, or a link to nothing, has a size of 0.

    Raises:
        InputReadError: a folder can't be listed.
    """
    real = os.path.realpath(folder)
    for name, is_link in _walk(folder):
        path = os.path.join(folder, name)
        leads_out = is_link and os.path.commonpath([real, os.path.realpath(path)]) != real
        size = 0
        if sizes:
            with contextlib.suppress(OSError):  # reading it says why
                size = os.stat(path).st_size
        yield Found(name, size, leads_out)


def _walk(folder: str) -> Iterator[tuple[str, bool]]:
    """Each file's name, and whether it is a link."""
    ahead = _entries(folder, "")
    while ahead:
        name, is_link = ahead.pop()
        if name.endswith("/"):
            ahead += _entries(folder, name)
        else:
            yield name, is_link


def _entries(folder: str, prefix: str) -> list[tuple[str, bool]]:
    """The files and folders ("/" behind their names) directly under a prefix, the last by name first."""
    try:
        with os.scandir(os.path.join(folder, prefix)) as found:
            entries = [
                (f"{prefix}{one.name}{'/' if one.is_dir(follow_symlinks=False) else ''}", one.is_symlink())
                for one in found
                if not one.name.startswith(".") and not (one.is_symlink() and one.is_dir())
            ]
    except OSError as error:
        raise InputReadError(os.path.join(folder, prefix), error, 0) from error
    return sorted(entries, reverse=True)
