"""Folders that programs read by path alone, fetched from where they lie once a node."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import huggingface_hub

from pipeline.errors import UserError
from pipeline.storage.places import folder_at
from pipeline.storage.store import Entry, StorageError, Store

_AT_ONCE = 4
_PIECE_BYTES = 8 << 20
_FOLDER = "zoo-prune"  # in the folder of the hub's caches, which users move to where there is room


def fetched_folder(address: str, patterns: Sequence[str]) -> Path:
    """A folder of this node with the files at an address whose names match one of the patterns.

    It is named by their sizes and tags: files that were replaced since are fetched again, into another folder. Of
    several processes one fetches, the others wait.

    Raises:
        FileNotFoundError: there are no such files.
        StorageError: they can't be read.
        UserError: there is no room for them.
    """
    store = folder_at(address)
    wanted = [entry for entry in store.list() if any(fnmatchcase(entry.key, pattern) for pattern in patterns)]
    if not wanted:
        raise FileNotFoundError(address)
    version = json.dumps([address, *((entry.key, entry.size_bytes, entry.tag) for entry in wanted)])
    cache = Path(huggingface_hub.constants.HF_HOME) / _FOLDER
    folder = cache / hashlib.sha256(version.encode()).hexdigest()[:32]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / f"{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(folder, wanted):
                _fetch(store, wanted, folder)
    except StorageError:
        raise
    except OSError as error:
        raise UserError(
            f"{cache}, where {address} is fetched to, can't be written: {error.strerror or error}; make room there, or "
            "name another folder in HF_HOME"
        ) from error
    return folder


def _is_whole(folder: Path, wanted: Sequence[Entry]) -> bool:
    return all((folder / one.key).is_file() and (folder / one.key).stat().st_size == one.size_bytes for one in wanted)


def _fetch(store: Store, wanted: Sequence[Entry], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)  # of a process that was killed: this one has the lock
    half.mkdir()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda entry: _copy(store, entry, half / entry.key), wanted))
    os.replace(half, folder)


def _copy(store: Store, entry: Entry, path: Path) -> None:
    with store.open(entry.key) as stream, open(path, "wb") as copy:
        shutil.copyfileobj(stream, copy, _PIECE_BYTES)
    if store.stat(entry.key) != entry:
        raise StorageError(errno.ESTALE, "it was replaced while it was fetched: run again", store.locate(entry.key))
