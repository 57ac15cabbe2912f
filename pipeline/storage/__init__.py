"""Everything that has a path: the one room that opens, writes, renames, lists, deletes and locks files."""

from pipeline.storage.local import LocalStore
from pipeline.storage.store import Entry, HeldError, NewFile, Store

__all__ = ["Entry", "HeldError", "LocalStore", "NewFile", "Store"]
