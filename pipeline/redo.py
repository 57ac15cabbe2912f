"""`--redo-errors`: whole shards that hold transient failures (a missing file, an I/O error) are done again."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact import Artifact
from pipeline.index import Generation, Index, write_index, write_part
from pipeline.paths import open_regular
from schemas.tables import INDEX
from schemas.views import quoted

TRANSIENT = frozenset(("missing_file", "read_error"))


def forget_transient_errors(artifact: Artifact, index: Index, say: Callable[[str], None]) -> Index:
    """Take back the commits of shards with transient failures; returns the index with the files that can be read now.

    A file that was missing when the corpus was indexed has no hash: it is hashed now, and unless its bytes are known
    already it becomes the last image of the shard its sample rides in.
    """
    shards = []
    for record in artifact.commits():
        if any(record.counts.get(f"samples.{reason}", 0) for reason in TRANSIENT):
            shards.append(record.shard)
    if not shards:
        say("no committed shard holds a transient failure; nothing to redo")
        return index
    say(f"{len(shards):,} shards hold transient failures and are done again")
    artifact.reopen()
    artifact.forget(shards)
    return _read_again(index, shards)


def _read_again(index: Index, shards: list[int]) -> Index:
    by_part: dict[Path, list[tuple[int, int]]] = defaultdict(list)
    for shard in shards:
        path, group = index.part_of(shard)
        by_part[path].append((group, shard))
    found: dict[str, int] = {}  # image_id -> shard, of images that enter the index now
    mended: dict[int, Counter[str]] = {}  # per shard, samples per former reason
    new_images: Counter[int] = Counter()  # per shard
    for path, groups in by_part.items():
        file = pq.ParquetFile(path)
        tables = [file.read_row_group(n) for n in range(file.num_row_groups)]
        changed = False
        for group, shard in groups:
            rows = tables[group].to_pylist()
            for row in rows:
                if row["image_id"] is None and row["reason"] in TRANSIENT and row["path"] is not None:
                    reason = row["reason"]
                    if _mend(row, rows, index, found):
                        mended.setdefault(shard, Counter())[reason] += 1
                        new_images[shard] += row["slot"] is not None
                        changed = True
            tables[group] = pa.Table.from_pylist(rows, INDEX)
        if changed:
            write_part(path, tables)
    if not mended:
        return index
    updated = Index(index.root, [_recount(g, new_images, mended) for g in index.generations])
    write_index(updated)
    return updated


def _mend(row: dict[str, Any], rows: list[dict[str, Any]], index: Index, found: dict[str, int]) -> bool:
    """Hash the file a row could not read before; False when it still can't be read."""
    try:
        with open_regular(row["path"]) as stream:
            image_id = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
    except OSError:
        return False  # stays in the errors table with its reason
    row.update(image_id=image_id, size=size, reason=None, message=None)
    owner = found.get(image_id)
    if owner is None:
        owner = _owner_shard(index, image_id)
    if owner is None:
        owner = row["shard"]
        row["slot"] = 1 + max((r["slot"] for r in rows if r["slot"] is not None), default=-1)
        found[image_id] = owner
    row["image_shard"] = owner
    return True


def _owner_shard(index: Index, image_id: str) -> int | None:
    listing = ", ".join(quoted(str(path)) for path in index.files())
    found = duckdb.connect().execute(
        f"select shard from read_parquet([{listing}]) where image_id = ? and slot is not null", [image_id]
    )
    rows = found.fetchall()
    return int(rows[0][0]) if rows else None


def _recount(generation: Generation, new_images: Counter[int], mended: dict[int, Counter[str]]) -> Generation:
    shards = range(generation.first_shard, generation.first_shard + generation.num_shards)
    failed = Counter(generation.failed_samples)
    for shard, reasons in mended.items():
        if shard in shards:
            failed.subtract(reasons)
    return replace(
        generation,
        num_images=generation.num_images + sum(new_images[shard] for shard in shards if shard in new_images),
        failed_samples={reason: count for reason, count in failed.items() if count > 0},
    )
