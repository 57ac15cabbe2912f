"""Locations as users and manifests write them: which store one lies in, and what it stands for.

A location is a path, or `hf://datasets/OWNER/NAME@REVISION/FILE` of the Hugging Face Hub. Stores that are reached by
other URLs plug their schemes in here.
"""

import glob
import os

from pipeline.storage.hub import HubStore, is_of_hub, split
from pipeline.storage.local import LocalStore
from pipeline.storage.store import Store


def at(location: str) -> tuple[Store, str]:
    """The store that holds a location, and its key there."""
    if is_of_hub(location):
        return HubStore(location), split(location)[2] or ""
    folder, name = os.path.split(location)
    if name in ("", ".", ".."):
        return LocalStore(location), ""
    return LocalStore(folder), name


def expand(pattern: str) -> list[str]:
    """The locations that a pattern with `*?[]` stands for, sorted by name.

    A pattern without wildcards stands for itself, whether or not something is there; so does one that is itself the
    name of something that is there.
    """
    named = not glob.has_magic(pattern) or os.path.exists(pattern)
    return [pattern] if named else sorted(glob.glob(pattern))


def is_there(location: str) -> bool:
    """Whether there is a file at a location."""
    store, key = at(location)
    return store.stat(key) is not None


def beside(location: str, name: str) -> str:
    """The location that `name` means where the file at `location` mentions it: relative to that file's folder."""
    return os.path.join(os.path.dirname(location), name)
