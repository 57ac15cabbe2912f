"""The data files of a shard: tables as Parquet, kept features as WebDataset tars. The same rows give the same bytes."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.ledger import store_of
from pipeline.storage import NewFile, Store
from schemas.columns import views_of
from schemas.records import FileEntry

# Fields of a selection that go into the JSON member beside its features.
_SAMPLE_FIELDS = [
    "image_id", "source", "width", "height", "num_tokens", "num_kept", "num_structure", "grid", "segments", "structure",
    "image_grid_thw", "ranking", "gain", "position",
]  # fmt: skip


def write_table(root: Path | Store, table: str, shard: int, rows: pa.Table) -> FileEntry:
    """Write `rows` as `<table>/part-<shard>.parquet`, one row group; the same rows give the same bytes."""
    with store_of(root).new_file(f"{table}/part-{shard:08d}.parquet") as new:
        _write_rows(new.path, rows)
        sha256 = new.sha256()
    return _file_entry(new, len(rows), sha256)


def write_features_tar(root: Path | Store, shard: int, selections: pa.Table, features: pa.Table) -> FileEntry:
    """Write the kept features as `features/shard-<shard>.tar`; the same rows give the same bytes.

    Args:
        root: the folder of the artifact, or the store that holds it.
        shard: number.
        selections: rows of `SELECTIONS`.
        features: rows of `FEATURES` of the same images in the same order.
    """
    assert selections["image_id"].equals(features["image_id"]), "selections and features are of the same images"
    samples = selections.select(_SAMPLE_FIELDS).to_pylist()
    with store_of(root).new_file(f"features/shard-{shard:08d}.tar") as new:
        # What webdataset.TarWriter writes; that package imports torch, which costs a writing process seconds.
        with new.open() as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for sample, payload in zip(samples, views_of(features["features"]), strict=True):
                _add_member(archive, f"{sample['image_id']}.features.safetensors", payload)
                _add_member(archive, f"{sample['image_id']}.json", _in_json(sample))
        sha256 = new.sha256()
    return _file_entry(new, len(selections), sha256)


def table_size(rows: pa.Table) -> int:
    """Bytes of the file that `write_table` makes of `rows`; nothing is written."""
    sink = pa.MockOutputStream()
    _write_rows(sink, rows)
    return int(sink.size())


def member_sizes(selections: pa.Table) -> list[int]:
    """Bytes of the JSON member that `write_features_tar` makes of each row of `SELECTIONS`."""
    return [len(_in_json(sample)) for sample in selections.select(_SAMPLE_FIELDS).to_pylist()]


def in_tar(size_bytes: int) -> int:
    """Bytes that a member of this size takes in a tar: its header, and itself in whole blocks."""
    return tarfile.BLOCKSIZE * (1 + -(-size_bytes // tarfile.BLOCKSIZE))


def tar_size(members_bytes: int) -> int:
    """Bytes of a tar whose members take so many: with the mark of its end, in whole records."""
    return -(-(members_bytes + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _write_rows(sink: Any, rows: pa.Table) -> None:
    with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
        if len(rows):  # an empty file has no row group: some readers stumble over one without rows
            writer.write_table(rows, row_group_size=len(rows))


def _in_json(sample: dict[str, Any]) -> bytes:
    return json.dumps(sample, sort_keys=True, ensure_ascii=False).encode()


def _add_member(archive: tarfile.TarFile, name: str, data: bytes | pa.Buffer) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(memoryview(data)), 0o444
    archive.addfile(member, io.BytesIO(data))


def _file_entry(new: NewFile, rows: int, sha256: str) -> FileEntry:
    assert new.entry is not None, "it is in the store"
    return FileEntry(new.entry.key, rows, new.entry.size_bytes, new.entry.tag, sha256)
