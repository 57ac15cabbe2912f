"""Locations as users and manifests write them: which store one lies in, and what it stands for.

A location is a path, `s3://BUCKET/KEY` of an object store, or `hf://datasets/OWNER/NAME@REVISION/FILE` of the Hugging
Face Hub. Stores that are reached by other URLs plug their schemes in here.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from pipeline.storage.hub import HubStore, is_of_hub, split
from pipeline.storage.local import LocalStore
from pipeline.storage.paths import is_object, is_url, object_location, split_object
from pipeline.storage.store import Store


def at(location: str) -> tuple[Store, str]:
    """The store that holds a location, and its key there."""
    if is_of_hub(location):
        return HubStore(location), split(location)[2] or ""
    if is_object(location):
        bucket, key = split_object(location)
        return folder_at(object_location(bucket, "")), key
    folder, name = os.path.split(location)
    if name in ("", ".", ".."):
        return LocalStore(location), ""
    return LocalStore(folder), name


def folder_at(address: str) -> Store:
    """The store whose root is the folder, or the prefix of a bucket, at an address."""
    if is_object(address):
        from pipeline.storage.objects import (
            ObjectStore,  # here, so that who has no bucket need not wait for its library
        )

        return ObjectStore.at(address)
    return LocalStore(os.path.realpath(address))


def absolute(location: str) -> str:
    """The location as any process can use it."""
    if is_object(location):
        return object_location(*split_object(location))
    return location if is_url(location) else os.path.abspath(location)


def real(location: str) -> str:
    """The one location of what is there, where links give it others."""
    return location if is_url(location) else os.path.realpath(location)


def expand(pattern: str) -> list[str]:
    """The locations that a pattern with `*?[]` stands for, sorted by name.

    A pattern without wildcards stands for itself, whether or not something is there; so does one that is itself the
    name of something that is there.

    Raises:
        StorageError: what is there can't be listed.
    """
    if not glob.has_magic(pattern):
        return [pattern]
    if is_object(pattern):
        store, key = at(pattern)
        if store.stat(key) is not None:
            return [pattern]
        return sorted(store.locate(found) for found in _matching(store, "", key.split("/")))
    return [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))


def _matching(store: Store, prefix: str, parts: Sequence[str]) -> Iterator[str]:
    """The keys and prefixes (without their last "/") under a prefix whose parts match, as `glob` does with paths."""
    part, *rest = parts
    if rest and not glob.has_magic(part):
        yield from _matching(store, f"{prefix}{part}/", rest)
        return
    for name in store.names(prefix):
        plain = name.rstrip("/")
        if fnmatchcase(plain, part) and (part.startswith(".") or not plain.startswith(".")):
            if not rest:
                yield f"{prefix}{plain}"
            elif name.endswith("/"):
                yield from _matching(store, f"{prefix}{name}", rest)


def is_there(location: str) -> bool:
    """Whether there is a file at a location."""
    store, key = at(location)
    return store.stat(key) is not None


def beside(location: str, name: str) -> str:
    """The location that `name` means where the file at `location` mentions it: relative to that file's folder."""
    return os.path.join(os.path.dirname(location), name)


def common_folder(locations: Sequence[str]) -> str:
    """The deepest folder that holds all of these locations but those which have none: paths, or objects of one bucket.

    Where both are among them, or objects of more buckets, it is the folder of the paths.
    """
    folders = [os.path.dirname(one) for one in locations if not is_url(one)]
    if folders:
        return os.path.commonpath(folders)
    objects = [split_object(one) for one in locations if is_object(one)]
    buckets = {bucket for bucket, _ in objects}
    if len(buckets) != 1:
        return "/"
    return object_location(buckets.pop(), os.path.commonpath([os.path.dirname(f"/{key}") for _, key in objects])[1:])


def seen_from(location: str, folder: str) -> str:
    """A location seen from a folder; itself, where no way leads from there to it. No two locations are seen as one."""
    if is_object(folder) and is_object(location):
        (here, base), (bucket, key) = split_object(folder), split_object(location)
        return os.path.relpath(f"/{key}", f"/{base}") if here == bucket else location
    return location if is_url(location) or is_object(folder) else os.path.relpath(location, folder)
