"""The data files of a shard: tables as Parquet, kept features as WebDataset tars. The same rows give the same bytes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

from pipeline.storage.files import new_file, sha256_of
from schemas.columns import views_of
from schemas.records import FileEntry
from schemas.tables import SELECTIONS

# Fields of a selection that go into the JSON member beside its features.
_SAMPLE_FIELDS = [
    name
    for name in SELECTIONS.names
    if name not in ("sensitivity", "shard", "last_gain") and "sensitivity_" not in name
]


def write_table(root: Path, table: str, shard: int, rows: pa.Table) -> FileEntry:
    """Write `rows` as `<table>/part-<shard>.parquet`, one row group; the same rows give the same bytes."""
    path = root / table / f"part-{shard:08d}.parquet"
    with new_file(path) as temporary:
        with pq.ParquetWriter(temporary, rows.schema, compression="zstd") as writer:
            if len(rows):  # an empty file has no row group: some readers stumble over one without rows
                writer.write_table(rows, row_group_size=len(rows))
        return _entry(root, path, temporary, len(rows))


def write_features_tar(root: Path, shard: int, selections: pa.Table, features: pa.Table) -> FileEntry:
    """Write the kept features as `features/shard-<shard>.tar`; the same rows give the same bytes.

    Args:
        root: of the artifact.
        shard: number.
        selections: rows of `SELECTIONS`.
        features: rows of `FEATURES` of the same images in the same order.
    """
    assert selections["image_id"].equals(features["image_id"]), "selections and features are of the same images"
    path = root / "features" / f"shard-{shard:08d}.tar"
    samples = selections.select(_SAMPLE_FIELDS).to_pylist()
    with new_file(path) as temporary:
        with wds.TarWriter(str(temporary), encoder=False, mtime=0, user="", group="") as writer:
            for sample, payload in zip(samples, views_of(features["features"]), strict=True):
                writer.write(
                    {
                        "__key__": sample["image_id"],
                        "features.safetensors": payload,
                        "json": json.dumps(sample, sort_keys=True, ensure_ascii=False).encode(),
                    }
                )
        return _entry(root, path, temporary, len(selections))


def _entry(root: Path, path: Path, temporary: Path, rows: int) -> FileEntry:
    status = temporary.stat()
    return FileEntry(path.relative_to(root).as_posix(), rows, status.st_size, status.st_mtime_ns, sha256_of(temporary))
