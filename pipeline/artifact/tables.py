"""The data files of a shard: tables as Parquet, kept features as WebDataset tars. The same rows give the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

from pipeline.storage.files import new_file, sha256_of
from schemas.records import FileEntry
from schemas.tables import SELECTIONS

# Fields of a selection that go into the JSON member beside its features.
_SAMPLE_FIELDS = [
    name
    for name in SELECTIONS.names
    if name not in ("sensitivity", "shard", "last_gain") and "sensitivity_" not in name
]


def write_table(root: Path, table: str, shard: int, rows: list[dict[str, Any]], schema: pa.Schema) -> FileEntry:
    """Write `rows` as `<table>/part-<shard>.parquet`, one row group; the same rows give the same bytes."""
    path = root / table / f"part-{shard:08d}.parquet"
    with new_file(path) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            if rows:  # an empty file has no row group: some readers stumble over one without rows
                writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))
        return _entry(root, path, temporary, len(rows))


def write_features_tar(root: Path, shard: int, selections: list[dict[str, Any]]) -> FileEntry:
    """Write the kept features as `features/shard-<shard>.tar`; the same rows give the same bytes."""
    path = root / "features" / f"shard-{shard:08d}.tar"
    with new_file(path) as temporary:
        with wds.TarWriter(str(temporary), encoder=False, mtime=0, user="", group="") as writer:
            for row in selections:
                writer.write(
                    {
                        "__key__": row["image_id"],
                        "features.safetensors": row["features"],
                        "json": _sample_json(row),
                    }
                )
        return _entry(root, path, temporary, len(selections))


def _sample_json(row: Mapping[str, Any]) -> bytes:
    fields = {name: row[name] for name in _SAMPLE_FIELDS}
    return json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()


def _entry(root: Path, path: Path, temporary: Path, rows: int) -> FileEntry:
    status = temporary.stat()
    return FileEntry(path.relative_to(root).as_posix(), rows, status.st_size, status.st_mtime_ns, sha256_of(temporary))
