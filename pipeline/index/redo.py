"""`--redo-errors`: whole shards that hold transient failures (a missing file, an I/O error) are done again."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Generation, Index, part_path, write_index, write_part
from pipeline.storage.input_file import InputReadError, open_input
from schemas.statuses import Counted
from schemas.tables import INDEX
from schemas.views import quoted

# Failures of the place an input lies in or of the worker that read it, not of what the input is.
TRANSIENT = ("missing_file", "read_error", "changed_file", "out_of_memory")


def forget_transient_errors(artifact: Artifact, index: Index, say: Callable[[str], None]) -> Index:
    """Take back the commits of shards with transient failures; returns the index with the files that can be read now.

    A file that was missing when the corpus was indexed has no hash: it is hashed now, and unless its bytes are known
    already it becomes the last image of the shard its sample rides in. What an interrupted redo left is taken up.
    """
    unhashed = _shards_without_hashes(index)
    shards = set(unhashed)
    for record in artifact.commits():
        if any(record.counts.get(Counted.SAMPLES.named(reason), 0) for reason in TRANSIENT):
            shards.add(record.shard)
    if shards:
        say(f"{len(shards):,} shards hold transient failures and are done again")
        artifact.reopen()
        artifact.forget(sorted(shards))
        _hash_again(index, unhashed)
    else:
        say("no shard holds a transient failure; nothing to redo")
    counted = Index(index.root, [_recounted(index.root, generation) for generation in index.generations])
    if counted != index:
        write_index(counted)
    return counted


def _shards_without_hashes(index: Index) -> list[int]:
    """Shards of samples whose image could not be read in the scan, committed or not."""
    if not index.files():
        return []
    found = duckdb.execute(
        f"select distinct shard from {_parts(index.files())} "
        f"where image_id is null and reason in {TRANSIENT} and path is not null order by shard"
    )
    return [int(shard) for (shard,) in found.fetchall()]


def _parts(paths: list[Path]) -> str:
    return f"read_parquet([{', '.join(quoted(str(path)) for path in paths)}])"


def _hash_again(index: Index, shards: list[int]) -> None:
    by_part: dict[Path, list[int]] = defaultdict(list)
    for shard in shards:
        path, group = index.part_of(shard)
        by_part[path].append(group)
    found: dict[str, int] = {}  # image_id -> shard, of images that enter the index now
    for path, groups in by_part.items():
        file = pq.ParquetFile(path)
        tables = [file.read_row_group(n) for n in range(file.num_row_groups)]
        changed = False
        for group in groups:
            rows = tables[group].to_pylist()
            for row in rows:
                if row["image_id"] is None and row["reason"] in TRANSIENT and row["path"] is not None:
                    before = dict(row)
                    _mend(row, rows, index, found)
                    changed |= row != before
            tables[group] = pa.Table.from_pylist(rows, INDEX)
        if changed:
            write_part(path, tables)


def _mend(row: dict[str, Any], rows: list[dict[str, Any]], index: Index, found: dict[str, int]) -> None:
    """Hash the image a row could not give before; where it still can't be read, note why not now."""
    try:
        image_id, size = _hashed(row)
    except InputReadError as error:
        row.update(reason=error.reason, message=str(error))
        return
    row.update(image_id=image_id, size=size, reason=None, message=None)
    owner = found.get(image_id)
    if owner is None:
        owner = _owner_shard(index, image_id)
    if owner is None:
        owner = row["shard"]
        row["slot"] = 1 + max((r["slot"] for r in rows if r["slot"] is not None), default=-1)
        found[image_id] = owner
    row["image_shard"] = owner


def _hashed(row: dict[str, Any]) -> tuple[str, int]:
    """Hash and size of the bytes a row points at: a whole file, or a member of a tar."""
    with open_input(row["path"]) as stream:
        if row["offset"] is None:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
        stream.seek(row["offset"])
        return hashlib.sha256(stream.read(row["size"])).hexdigest(), row["size"]


def _owner_shard(index: Index, image_id: str) -> int | None:
    rows = duckdb.execute(
        f"select shard from {_parts(index.files())} where image_id = ? and slot is not null", [image_id]
    ).fetchall()
    return int(rows[0][0]) if rows else None


def _recounted(root: Path, generation: Generation) -> Generation:
    """The generation with the counts that its files have now; a redo may have been killed between them and these."""
    files = range(generation.first_file, generation.first_file + generation.num_files)
    if not files:
        return generation
    counts = duckdb.execute(
        f"select reason, count(*), count(slot) from {_parts([part_path(root, n) for n in files])} "
        "group by reason order by reason"
    ).fetchall()
    return replace(
        generation,
        num_images=sum(images for _, _, images in counts),
        failed_samples={reason: samples for reason, samples, _ in counts if reason is not None},
    )
