"""Numbering the distinct images of a scan and giving every sample a shard. Out of core: DuckDB spills.

The lowest input position owns an image; prompts that refer to the same bytes anywhere in the corpus ride in the owner's
shard. A shard is full when it holds as many images as it may, or as many bytes of their prepared pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifact.index import MAX_KEYS_SHOWN, Generation, part_key, write_part
from pipeline.errors import UserError
from pipeline.storage import Store
from schemas.tables import INDEX
from schemas.views import parquet_files, quoted

MAX_KEYS_SEEN = MAX_KEYS_SHOWN + 1  # one more, so that it is seen that there are
UNREAD_BYTES = ("truncated_tar", "trailing_data")  # rows whose `size` is what the scan could not read


@dataclass(frozen=True, slots=True)
class PixelBound:
    """How many bytes the prepared pixels of a shard take at most, unless a single image takes more."""

    most: int
    of_size: Callable[[int, int], int]  # width and height of an image -> bytes of its prepared pixels


# Positions are (input, sample). `n` numbers the samples of this generation in corpus order. A prompt id belongs to the
# first prompt that can be posed, where there is none to the first; the others get ids of their own, so that ids are
# unique and a join by them pairs nothing wrongly.
_ASSIGN = """
create table samples as
    select *, row_number() over (order by input, sample) as n from {scan} {limit};
create table known as {known};
create table owners as
    select image_id, n, width, height, row_number() over (order by n) - 1 as rank
    from (
        select image_id, min(n) as n, any_value(width) as width, any_value(height) as height
        from samples where reason is null group by image_id
    )
    anti join known using (image_id);
"""
_PLACE = """
create table owned as
    select o.image_id, o.n, ({first_shard} + s.number)::integer as shard, (o.rank - s.rank)::integer as slot
    from owners o asof join starts s on o.rank >= s.rank;
create table repeated as
    with prompts as (
        select n, reason, unnest(prompts).prompt_id as prompt_id, unnest(prompts).status as status,
               generate_subscripts(prompts, 1) as place
        from samples
    ),
    suspects as (
        select prompt_id from prompts group by prompt_id having count(*) > 1
        union
        select prompt_id from prompts semi join known_prompts using (prompt_id)
    )
    select n, list(place) as places
    from (
        select n, place, k.prompt_id as old, row_number() over (
            partition by prompt_id order by (status <> 'ok' or reason is not null), n, place
        ) as occurrence
        from prompts semi join suspects using (prompt_id) left join known_prompts k using (prompt_id)
    )
    where occurrence > 1 or old is not null group by n;
create table placed as
    select coalesce(o.shard, before.shard, {first_shard})::integer as shard,
           case when o.n = s.n then o.slot end as slot,
           coalesce(o.shard, k.shard)::integer as image_shard,
           s.* exclude (prompts, n, width, height, keys),
           case when r.places is null then s.prompts else list_transform(s.prompts, lambda p, i:
               case when list_contains(r.places, i) then struct_update(p, prompt_id := s.source || '#' || (i - 1),
                   status := case when p.status = 'ok' then 'duplicate_prompt_id' else p.status end,
                   message := coalesce(p.message || '; ', '') || 'its id ''' || p.prompt_id[:200]
                       || ''' is that of another prompt') else p end)
           end as prompts
    from samples s
    asof left join (select n, shard from owned) before on s.n >= before.n
    left join owned o on s.image_id = o.image_id and s.reason is null
    left join known k on s.image_id = k.image_id and s.reason is null
    left join repeated r on s.n = r.n
    order by shard, s.n;
"""


def assign_shards(
    store: Store,
    units: list[str],
    old_parts: list[str],
    new: Generation,
    *,
    shard_size: int,
    limit: int | None,
    bound: PixelBound | None,
) -> Generation:
    """Number the distinct images, place every sample in a shard, write `_index` parts. Out of core: DuckDB spills.

    Args:
        store: of the artifact.
        units: keys of the scanned units, files of `schemas.samples.Sample`.
        old_parts: keys of the index's files of older generations.
        new: where this generation begins.
        shard_size: distinct images a shard at most.
        limit: take only the first samples.
        bound: of the shards' pixels; None: only `shard_size` counts.

    Returns:
        `new` with what it holds now.

    Raises:
        UserError: there is no sample at all, or no room.
    """
    with store.scratch() as scratch, _storage_errors(), duckdb.connect(str(scratch / "assign.duckdb")) as db:
        db.execute(f"set temp_directory = {quoted(str(scratch / 'spill'))}")
        db.execute("set threads = 1")
        if old_parts:
            listing = parquet_files(store.locate(key) for key in old_parts)
            known = f"select image_id, shard from {listing} where slot is not null"
            known_prompts = f"select distinct unnest(prompts).prompt_id as prompt_id from {listing}"
        else:
            known = "select null::varchar as image_id, null::integer as shard where false"
            known_prompts = "select null::varchar as prompt_id where false"
        db.execute(f"create table known_prompts as {known_prompts}")
        db.execute(
            _ASSIGN.format(
                scan=parquet_files(store.locate(key) for key in units),
                limit="" if limit is None else f"qualify n <= {limit}",
                known=known,
            )
        )
        starts = list(_starts(_prepared_bytes(db, bound), shard_size, bound.most if bound else 0))
        numbers = pa.array(range(len(starts)), pa.int64())
        db.register("starts", pa.table({"number": numbers, "rank": pa.array(starts, pa.int64())}))
        db.execute(_PLACE.format(first_shard=new.first_shard))
        num_samples, num_images, num_prompts, num_shards = _one_row(
            db, f"select count(*), count(slot), sum(len(prompts)), max(shard) + 1 - {new.first_shard} from placed"
        )
        if not num_samples:
            raise UserError(
                f"--corpus: {new.inputs[0].path}{' and the others hold' if len(new.inputs) > 1 else ' holds'} "
                "no sample at all: nothing but zeros or blank lines; name the files that hold the images"
            )
        (unread_bytes,) = _one_row(db, f"select sum(size) from placed where reason in {UNREAD_BYTES}")
        without = "from samples where reason is null and len(prompts) = 0"
        (without_prompts,) = _one_row(db, f"select count(*) {without}")
        placed = replace(
            new,
            num_shards=num_shards,
            num_files=-(-num_shards // new.shards_per_file),
            num_samples=num_samples,
            num_images=num_images,
            num_prompts=num_prompts,
            failed_samples=_counted(db, "select reason from placed where reason is not null"),
            failed_prompts=_counted(
                db, "select * from (select unnest(prompts).status from placed where reason is null) where #1 <> 'ok'"
            ),
            unread_bytes=unread_bytes,
            without_prompts=without_prompts,
            keys_seen=_counted(db, f"select unnest(keys) {without}", MAX_KEYS_SEEN),
        )
        _write_parts(store, db, placed)
    return placed


def _prepared_bytes(db: duckdb.DuckDBPyConnection, bound: PixelBound | None) -> Iterator[int]:
    """The bytes of the prepared pixels of each image that is new, in their order; 0 where nothing is known of them."""
    if bound is not None:
        sizes = db.sql("select distinct width, height from owners where width is not null").fetchall()
        taken = pa.array([bound.of_size(width, height) for width, height in sizes], pa.int64())
        widths, heights = (pa.array([size[axis] for size in sizes], pa.int32()) for axis in (0, 1))
        db.register("prepared", pa.table({"width": widths, "height": heights, "bytes": taken}))
        each = "select coalesce(bytes, 0) from owners left join prepared using (width, height) order by rank"
    else:
        each = "select 0 from owners"
    for batch in db.sql(each).to_arrow_reader():
        yield from batch.column(0).to_pylist()


def _starts(taken: Iterable[int], shard_size: int, most: int) -> Iterator[int]:
    """The ranks of the images that begin a shard, given what each image takes.

    It goes by the images alone, in their order: what comes later never changes what was cut before.
    """
    count = total = 0
    for rank, size in enumerate(taken):
        if not count or count == shard_size or total + size > most > 0:
            yield rank
            count = total = 0
        count += 1
        total += size


def _write_parts(store: Store, db: duckdb.DuckDBPyConnection, new: Generation) -> None:
    columns = ", ".join(f'"{name}"' for name in INDEX.names)
    for file in range(new.num_files):
        begin = new.first_shard + file * new.shards_per_file
        table = db.sql(
            f"select {columns} from placed where shard >= {begin} and shard < {begin + new.shards_per_file} "
            "order by shard, input, sample"
        ).to_arrow_table()
        table = table.cast(INDEX)
        groups = [table.filter(pc.equal(table["shard"], n)) for n in range(begin, _last_shard(table) + 1)]
        write_part(store, part_key(new.first_file + file), groups)


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Give what befalls DuckDB's files as an error of the system, which the store of the scratch folder explains."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:  # before its parent: no storage is to be mended
        said = str(error).partition("\n")[0]
        raise UserError(
            f"--corpus: this node has too little memory to number its images ({said}); run the job where there is more"
        ) from error
    except duckdb.OperationalError as error:  # I/O, a transaction that can't be written: nothing of the SQL
        raise OSError(str(error).partition("\n")[0]) from error


def _one_row(db: duckdb.DuckDBPyConnection, sql: str) -> tuple[int, ...]:
    (row,) = db.sql(sql).fetchall()
    return tuple(int(value or 0) for value in row)


def _counted(db: duckdb.DuckDBPyConnection, values: str, most: int | None = None) -> dict[str, int]:
    """How often each value of a one-column query comes, the most frequent first."""
    limit = "" if most is None else f"limit {most}"
    rows = db.execute(f"select v, count(*) from ({values}) as _ (v) group by v order by count(*) desc, v {limit}")
    return {value: int(count) for value, count in rows.fetchall()}


def _last_shard(table: pa.Table) -> int:
    return int(pc.max(table["shard"]).as_py())
