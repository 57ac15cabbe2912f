"""`--redo-errors`: whole shards that hold transient failures (a missing file, an I/O error) are done again."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Generation, Index, write_index, write_part
from pipeline.corpus.fetch import Place, hash_image
from pipeline.corpus.packed import DamagedError
from pipeline.storage import Store
from pipeline.storage.input_file import InputReadError
from schemas.columns import column, rows_of, table_of
from schemas.samples import IndexRow
from schemas.statuses import Counted
from schemas.views import parquet_files
from schemas.wording import counted

# Failures of the place an input lies in or of the worker that read it, not of what the input is.
TRANSIENT = ("missing_file", "read_error", "changed_file", "out_of_memory")


@dataclass(slots=True, kw_only=True)
class Unhashed:
    """A sample whose image could not be read in the scan."""

    shard: int = column(pa.int32())
    input: int = column(pa.int32())
    sample: int = column(pa.int64())
    path: str = column(pa.string())
    offset: int | None = column(pa.int64())
    size: int | None = column(pa.int64())
    within: str | None = column(pa.string())


@dataclass(frozen=True, slots=True)
class Tried:
    """What hashing an image came to: its hash and size, or the reason and message of why it still can't be read."""

    image_id: str | None = None
    size: int | None = None
    reason: str | None = None
    message: str | None = None


Position = tuple[int, int]  # input and sample of a row


def forget_transient_errors(artifact: Artifact, index: Index, say: Callable[[str], None]) -> Index:
    """Take back the commits of shards with transient failures; returns the index with the files that can be read now.

    A file that was missing when the corpus was indexed has no hash: it is hashed now, and unless its bytes are known
    already it becomes the last image of the shard its sample rides in. What an interrupted redo left is taken up.
    """
    unhashed = _unhashed(index)
    shards = {one.shard for one in unhashed}
    for record in artifact.commits():
        if any(record.counts.get(Counted.SAMPLES.named(reason), 0) for reason in TRANSIENT):
            shards.add(record.shard)
    if shards:
        say(f"{counted(len(shards), 'shards', 'hold')} transient failures: done again")
        artifact.reopen()
        artifact.forget(sorted(shards))
        _hash_again(index, unhashed)
    else:
        say("no shard holds a transient failure; nothing to redo")
    now = Index(index.store, [_recounted(index.store, generation) for generation in index.generations])
    if now != index:
        write_index(now)
    return now


def _unhashed(index: Index) -> list[Unhashed]:
    """Samples whose image could not be read in the scan, whether their shard is committed or not, in their order."""
    if not index.parts():
        return []
    with duckdb.connect() as db:
        found = db.sql(
            f'select shard, input, sample, path, "offset", size, within from {_rows(index.store, index.parts())} '
            f"where image_id is null and reason in {TRANSIENT} and path is not null order by shard, input, sample"
        )
        return rows_of(Unhashed, found.to_arrow_table())


def _rows(store: Store, parts: list[str]) -> str:
    return parquet_files(store.locate(key) for key in parts)


def _hash_again(index: Index, unhashed: list[Unhashed]) -> None:
    """Hash the images that could not be read, and write the parts of the index where that has told something new."""
    tried = {(one.input, one.sample): _tried(one) for one in unhashed}
    owners = _owners(index, {one.image_id for one in tried.values() if one.image_id is not None})
    groups: dict[str, set[int]] = defaultdict(set)
    for one in unhashed:
        key, group = index.part_of(one.shard)
        groups[key].add(group)
    for key in groups:
        file = pq.ParquetFile(index.store.locate(key))
        tables = [file.read_row_group(n) for n in range(file.num_row_groups)]
        changed = False
        for group in sorted(groups[key]):
            rows = rows_of(IndexRow, tables[group])
            if _mend(rows, tried, owners):
                tables[group] = table_of(IndexRow, rows)
                changed = True
        if changed:
            write_part(index.store, key, tables)


def _tried(one: Unhashed) -> Tried:
    try:
        found = hash_image(Place(one.path, one.offset, one.size, one.within))
    except InputReadError as error:
        return Tried(size=one.size, reason=error.reason, message=str(error))
    except DamagedError as error:
        return Tried(size=one.size, reason="changed_file", message=f"{one.path}: {error}")
    return Tried(found.image_id, found.size)


def _owners(index: Index, image_ids: set[str]) -> dict[str, int]:
    """The shards that hold those of these images which the index knows, by one look at all of it."""
    if not image_ids:
        return {}
    with duckdb.connect() as db:
        db.register("wanted", pa.table({"image_id": pa.array(sorted(image_ids), pa.string())}))
        found = db.execute(
            f"select image_id, shard from {_rows(index.store, index.parts())} semi join wanted using (image_id) "
            "where slot is not null"
        )
        return dict(found.fetchall())


def _mend(rows: list[IndexRow], tried: dict[Position, Tried], owners: dict[str, int]) -> bool:
    """Enter into the rows of a shard what hashing their images has told; whether any differs now.

    An image that nobody owned is added to `owners`: the first of its rows owns it.
    """
    changed = False
    last_slot = max((row.slot for row in rows if row.slot is not None), default=-1)
    for row in rows:
        now = tried.get((row.input, row.sample))
        if now is None or now == Tried(row.image_id, row.size, row.reason, row.message):
            continue
        changed = True
        row.image_id, row.size, row.reason, row.message = now.image_id, now.size, now.reason, now.message
        if row.image_id is None:
            continue
        if row.image_id not in owners:
            owners[row.image_id] = row.shard
            last_slot += 1
            row.slot = last_slot
        row.image_shard = owners[row.image_id]
    return changed


def _recounted(store: Store, generation: Generation) -> Generation:
    """The generation with the counts that its files have now; a redo may have been killed between them and these."""
    if not generation.parts:
        return generation
    counts = duckdb.execute(
        f"select reason, count(*), count(slot) from {_rows(store, generation.parts)} group by reason order by reason"
    ).fetchall()
    return replace(
        generation,
        num_images=sum(images for _, _, images in counts),
        failed_samples={reason: samples for reason, samples, _ in counts if reason is not None},
    )
