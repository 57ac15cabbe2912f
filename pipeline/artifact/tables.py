"""The data files of a shard: tables as Parquet, kept features as WebDataset tars. The same rows give the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

from pipeline.artifact.ledger import store_of
from pipeline.storage import NewFile, Store
from schemas.records import FileEntry
from schemas.tables import SELECTIONS

# Fields of a selection that go into the JSON member beside its features.
_SAMPLE_FIELDS = [
    name
    for name in SELECTIONS.names
    if name not in ("sensitivity", "shard", "last_gain") and "sensitivity_" not in name
]


def write_table(root: Path | Store, table: str, shard: int, rows: list[dict[str, Any]], schema: pa.Schema) -> FileEntry:
    """Write `rows` as `<table>/part-<shard>.parquet`, one row group; the same rows give the same bytes."""
    with store_of(root).new_file(f"{table}/part-{shard:08d}.parquet") as new:
        with pq.ParquetWriter(new.path, schema, compression="zstd") as writer:
            if rows:  # an empty file has no row group: some readers stumble over one without rows
                writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))
        sha256 = new.sha256()
    return _file_entry(new, len(rows), sha256)


def write_features_tar(root: Path | Store, shard: int, selections: list[dict[str, Any]]) -> FileEntry:
    """Write the kept features as `features/shard-<shard>.tar`; the same rows give the same bytes."""
    with store_of(root).new_file(f"features/shard-{shard:08d}.tar") as new:
        with wds.TarWriter(str(new.path), encoder=False, mtime=0, user="", group="") as writer:
            for row in selections:
                writer.write(
                    {
                        "__key__": row["image_id"],
                        "features.safetensors": row["features"],
                        "json": _sample_json(row),
                    }
                )
        sha256 = new.sha256()
    return _file_entry(new, len(selections), sha256)


def _sample_json(row: Mapping[str, Any]) -> bytes:
    fields = {name: row[name] for name in _SAMPLE_FIELDS}
    return json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()


def _file_entry(new: NewFile, rows: int, sha256: str) -> FileEntry:
    assert new.entry is not None, "it is in the store"
    return FileEntry(new.entry.key, rows, new.entry.size_bytes, new.entry.tag, sha256)
