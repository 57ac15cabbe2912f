"""The data files of a shard: tables as Parquet, kept features as WebDataset tars. The same rows give the same bytes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.artifact.ledger import store_of
from pipeline.storage import NewFile, Store
from schemas.columns import table_of, views_of
from schemas.records import FileEntry
from schemas.selections import PayloadRow

# Fields of a selection that go into the JSON member beside its features.
_SAMPLE_FIELDS = [
    "image_id", "source", "width", "height", "num_tokens", "num_kept", "num_structure", "grid", "segments", "structure",
    "image_grid_thw", "ranking", "gain", "position",
]  # fmt: skip
TAR, PARQUET, PAYLOADS = "features.webdataset", "features.parquet", "payloads"  # files of features in commit records
GROUP_BYTES = 1 << 20  # of features in a row group, which is what a reader of one image reads; or one image


def write_table(
    root: Path | Store, table: str, shard: int, rows: pa.Table, group_bytes: int | None = None
) -> FileEntry:
    """Write `rows` as `<table>/part-<shard>.parquet`; the same rows give the same bytes.

    Args:
        root: the folder of the artifact, or the store that holds it.
        table: its name.
        shard: number.
        rows: of the table.
        group_bytes: about so many in a row group, one row at least; without it all rows are one.
    """
    with store_of(root).new_file(f"{table}/part-{shard:08d}.parquet") as new:
        _write_rows(new.path, rows, group_bytes)
        sha256 = new.sha256()
    return _file_entry(new, len(rows), sha256)


def write_features(
    root: Path | Store, shard: int, selections: pa.Table, features: pa.Table, forms: Collection[str]
) -> dict[str, FileEntry]:
    """Write the kept features in each form, and where those of each image lie; files by their names in commit records.

    Args:
        root: the folder of the artifact, or the store that holds it.
        shard: number.
        selections: rows of `SELECTIONS`.
        features: rows of `FEATURES` of the same images in the same order.
        forms: of "webdataset", "parquet"; without any nothing is written.
    """
    assert selections["image_id"].equals(features["image_id"]), "selections and features are of the same images"
    files: dict[str, FileEntry] = {}
    offsets: list[int | None] = [None] * len(features)
    if "webdataset" in forms:
        files[TAR], offsets = _write_tar(root, shard, selections, features)
    if "parquet" in forms:
        files[PARQUET] = write_table(root, "features", shard, features, GROUP_BYTES)
    if forms:
        files[PAYLOADS] = write_table(root, PAYLOADS, shard, payloads_of(features, offsets))
    return files


def payloads_of(features: pa.Table, offsets: Iterable[int | None]) -> pa.Table:
    """The table `payloads` of rows of `FEATURES`, of which each lies at an offset of the tar if there is one."""
    rows = [
        PayloadRow(
            image_id=image_id, offset=offset, size_bytes=len(payload), sha256=hashlib.sha256(payload).hexdigest()
        )
        for image_id, offset, payload in zip(
            features["image_id"].to_pylist(), offsets, views_of(features["features"]), strict=True
        )
        if payload is not None
    ]
    return table_of(PayloadRow, rows)


def _write_tar(
    root: Path | Store, shard: int, selections: pa.Table, features: pa.Table
) -> tuple[FileEntry, list[int | None]]:
    """Write `features/shard-<shard>.tar`; also the bytes of it at which the payloads begin."""
    samples = selections.select(_SAMPLE_FIELDS).to_pylist()
    offsets: list[int | None] = []
    with store_of(root).new_file(f"features/shard-{shard:08d}.tar") as new:
        # What webdataset.TarWriter writes; that package imports torch, which costs a writing process seconds.
        with new.open() as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for sample, payload in zip(samples, views_of(features["features"]), strict=True):
                offsets.append(archive.offset + tarfile.BLOCKSIZE)
                _add_member(archive, f"{sample['image_id']}.features.safetensors", payload)
                _add_member(archive, f"{sample['image_id']}.json", _in_json(sample))
        sha256 = new.sha256()
    return _file_entry(new, len(selections), sha256), offsets


def dataset_of(store: Store, keys: Iterable[str], schema: pa.Schema, holds: ds.Expression | None = None) -> ds.Dataset:
    """Parquet files of one form as a table that queries read as much of as they need. Nothing is opened before that.

    Args:
        store: that holds them.
        keys: of the files.
        schema: of the table.
        holds: true of every row of these files; gives columns that are in no file.
    """
    form, files = ds.ParquetFileFormat(), store.arrow()
    return ds.FileSystemDataset([form.make_fragment(key, files, holds) for key in keys], schema, form, files)


def table_bytes(rows: pa.Table) -> bytes:
    """The bytes of the file that `write_table` makes of `rows`."""
    sink = pa.BufferOutputStream()
    _write_rows(sink, rows)
    return bytes(sink.getvalue())


def table_size(rows: pa.Table) -> int:
    """Bytes of the file that `write_table` makes of `rows`; nothing is written."""
    sink = pa.MockOutputStream()
    _write_rows(sink, rows)
    return int(sink.size())


def member_sizes(selections: pa.Table) -> list[int]:
    """Bytes of the JSON member that `write_features` puts into a tar for of each row of `SELECTIONS`."""
    return [len(_in_json(sample)) for sample in selections.select(_SAMPLE_FIELDS).to_pylist()]


def in_tar(size_bytes: int) -> int:
    """Bytes that a member of this size takes in a tar: its header, and itself in whole blocks."""
    return tarfile.BLOCKSIZE * (1 + -(-size_bytes // tarfile.BLOCKSIZE))


def tar_size(members_bytes: int) -> int:
    """Bytes of a tar whose members take so many: with the mark of its end, in whole records."""
    return -(-(members_bytes + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _write_rows(sink: Any, rows: pa.Table, group_bytes: int | None = None) -> None:
    # Checksums of pages: who reads some columns, or some rows, sees that these are sound.
    with pq.ParquetWriter(sink, rows.schema, compression="zstd", write_page_checksum=True) as writer:
        if len(rows):  # an empty file has no row group: some readers stumble over one without rows
            size = len(rows) if group_bytes is None else max(1, group_bytes * len(rows) // max(1, rows.nbytes))
            writer.write_table(rows, row_group_size=size)


def _in_json(sample: dict[str, Any]) -> bytes:
    return json.dumps(sample, sort_keys=True, ensure_ascii=False).encode()


def _add_member(archive: tarfile.TarFile, name: str, data: bytes | pa.Buffer) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(memoryview(data)), 0o444
    archive.addfile(member, io.BytesIO(data))


def _file_entry(new: NewFile, rows: int, sha256: str) -> FileEntry:
    assert new.entry is not None, "it is in the store"
    return FileEntry(new.entry.key, rows, new.entry.size_bytes, new.entry.tag, sha256)
