"""Any store as a file system of Arrow, which only reads. Keys are its paths."""

from typing import Any, NoReturn

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSystem, FileSystemHandler, FileType, PyFileSystem

from pipeline.storage.store import Store


def file_system(store: Store) -> FileSystem:
    """The file system of a store."""
    return PyFileSystem(_Handler(store))


class _Handler(FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    def __init__(self, store: Store) -> None:
        self._store = store

    def get_type_name(self) -> str:
        return "store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        found = ((path, self._store.stat(path)) for path in paths)
        return [
            FileInfo(path, FileType.NotFound) if entry is None else FileInfo(path, FileType.File, size=entry.size_bytes)
            for path, entry in found
        ]

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._store.open(path), mode="r")

    open_input_stream = open_input_file

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotImplementedError("an artifact is only read by Arrow")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse
