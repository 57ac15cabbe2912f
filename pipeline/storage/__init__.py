"""Everything that has a path: the one room that opens, writes, renames, lists, deletes and locks files."""

from pipeline.storage.local import LocalStore
from pipeline.storage.store import Entry, HeldError, NewFile, StorageError, Store

__all__ = ["Entry", "HeldError", "LocalStore", "NewFile", "StorageError", "Store"]
