"""Numbering the distinct images of a scan and giving every sample a shard. Out of core: DuckDB spills.

The lowest input position owns an image; prompts that refer to the same bytes anywhere in the corpus ride in the owner's
shard. A shard is full when it holds as many images as it may, or as many bytes of their prepared pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.index import MAX_KEYS_SHOWN, Generation
from pipeline.errors import UserError
from pipeline.index.parts import write_parts
from pipeline.storage import Store
from schemas.views import parquet_files, quoted

THREADS = 2
MAX_KEYS_SEEN = MAX_KEYS_SHOWN + 1  # one more, so that it is seen that there are
UNREAD_BYTES = ("truncated_tar", "trailing_data")  # rows whose `size` is what the scan could not read


@dataclass(frozen=True, slots=True)
class PixelBound:
    """How many bytes the prepared pixels of a shard take at most, unless a single image takes more."""

    most: int
    of_size: Callable[[int, int], int]  # width and height of an image -> bytes of its prepared pixels


# `n` numbers the samples of this generation: they stand in the units in corpus order. Of what is large, prompts above
# all, nothing is stored or sorted: the tables hold what decides where a sample goes, and the units are read again.
_SCAN = "read_parquet([{files}], filename = true, file_row_number = true)"
_SAMPLES = """
create table samples as
    select u.begin + file_row_number as n, image_id, width, height, reason, size, len(prompts) as num_prompts
    from {scan} s join units u on u.file = s.filename where u.begin + file_row_number < {limit};
create table known as {known};
create table owners as
    select image_id, n, width, height, row_number() over (order by n) - 1 as rank
    from (
        select image_id, min(n) as n, max(width) as width, max(height) as height
        from samples where reason is null group by image_id
    )
    anti join known using (image_id);
"""
# A sample's home is the shard that is being filled where it stands. It moves only to the shard of the image it repeats.
_PLACE = """
create table owned as
    select o.image_id, o.n, ({first_shard} + s.number)::integer as shard, (o.rank - s.rank)::integer as slot
    from owners o asof join starts s on o.rank >= s.rank;
create table places as
    select s.n, coalesce(before.shard, {first_shard})::integer as home,
           coalesce(o.shard, before.shard, {first_shard})::integer as shard,
           case when o.n = s.n then o.slot end as slot, coalesce(o.shard, k.shard)::integer as image_shard
    from samples s
    asof left join (select n, shard from owned) before on s.n >= before.n
    left join owned o on s.image_id = o.image_id and s.reason is null
    left join known k on s.image_id = k.image_id and s.reason is null;
"""
# A prompt id belongs to the first prompt that can be posed, where there is none to the first; the others get ids of
# their own, so that ids are unique and a join by them pairs nothing wrongly. Hashes tell which ids can come twice.
_SUSPECTS = """
create table suspects as
    with ids as (
        select hash(unnest(prompts).prompt_id) as id from {scan} s join units u on u.file = s.filename
        where u.begin + file_row_number < {limit}
    )
    select id from ids group by id having count(*) > 1
    union select id from ids semi join (select hash(prompt_id) as id from known_prompts) using (id);
"""
_MEND = """
create table repeated as
    with prompts as (
        select u.begin + file_row_number as n, reason, unnest(prompts).prompt_id as prompt_id,
               unnest(prompts).status as status, generate_subscripts(prompts, 1) as place
        from {scan} s join units u on u.file = s.filename where u.begin + file_row_number < {limit}
    ),
    suspected as (select * from prompts where hash(prompt_id) in (from suspects))
    select n, list(place) as places
    from (
        select n, place, k.prompt_id as old, row_number() over (
            partition by prompt_id order by (status <> 'ok' or reason is not null), n, place
        ) as occurrence
        from suspected left join known_prompts k using (prompt_id)
    )
    where occurrence > 1 or old is not null group by n;
create table mended as
    select r.n, list_transform(s.prompts, lambda p, i: case when list_contains(r.places, i) then
        struct_update(p, prompt_id := s.source || '#' || (i - 1),
            status := case when p.status = 'ok' then 'duplicate_prompt_id' else p.status end,
            message := coalesce(p.message || '; ', '') || 'its id ''' || p.prompt_id[:200]
                || ''' is that of another prompt') else p end) as prompts
    from {scan} s join units u on u.file = s.filename join repeated r on r.n = u.begin + file_row_number;
"""
_MOVED = """
create table moved as
    select s.* exclude (prompts, filename, file_row_number, width, height, keys, named), p.shard, p.slot, p.image_shard,
           coalesce(m.prompts, s.prompts) as prompts, p.n
    from {scan} s join units u on u.file = s.filename join places p on p.n = u.begin + file_row_number
    left join mended m on m.n = p.n where p.shard <> p.home order by p.shard, p.n;
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
    threads: int = THREADS,
) -> Generation:
    """Number the distinct images, place every sample in a shard, write `_index` parts. Out of core: DuckDB spills.

    Args:
        store: of the artifact.
        units: keys of the scanned units in order, files of `schemas.samples.Sample` ordered by input and sample.
        old_parts: keys of the index's files of older generations.
        new: where this generation begins.
        shard_size: distinct images a shard at most.
        limit: take only the first samples.
        bound: of the shards' pixels; None: only `shard_size` counts.
        threads: that work at it; the bytes that are written are the same for any number.

    Returns:
        `new` with what it holds now.

    Raises:
        UserError: there is no sample at all, or no room.
    """
    with (
        store.scratch() as scratch,
        store.local([*units, *old_parts]) as paths,
        _storage_errors(),
        duckdb.connect(str(scratch / "assign.duckdb")) as db,
    ):
        db.execute(f"set temp_directory = {quoted(str(scratch / 'spill'))}")
        db.execute(f"set threads = {threads}")
        files, old_files = paths[: len(units)], paths[len(units) :]
        begins = list(accumulate((pq.read_metadata(file).num_rows for file in files), initial=0))
        in_scan = {
            "scan": _SCAN.format(files=", ".join(map(quoted, files))),
            "limit": begins[-1] if limit is None else limit,
        }
        db.register(
            "units", pa.table({"file": pa.array(files, pa.string()), "begin": pa.array(begins[:-1], pa.int64())})
        )
        if old_files:
            listing = parquet_files(old_files)
            known = f"select image_id, shard from {listing} where slot is not null"
            known_prompts = f"select distinct unnest(prompts).prompt_id as prompt_id from {listing}"
        else:
            known = "select null::varchar as image_id, null::integer as shard where false"
            known_prompts = "select null::varchar as prompt_id where false"
        db.execute(f"create table known_prompts as {known_prompts}")
        db.execute(_SAMPLES.format(**in_scan, known=known))
        starts = list(shard_starts(_prepared_bytes(db, bound), shard_size, bound.most if bound else 0))
        numbers = pa.array(range(len(starts)), pa.int64())
        db.register("starts", pa.table({"number": numbers, "rank": pa.array(starts, pa.int64())}))
        db.execute(_PLACE.format(first_shard=new.first_shard))
        db.execute(_SUSPECTS.format(**in_scan))
        if _one_row(db, "select count(*) from suspects")[0]:
            db.execute(_MEND.format(**in_scan))
        else:
            db.execute("create table mended as select 0::bigint as n, prompts from {scan} limit 0".format(**in_scan))
        db.execute(_MOVED.format(**in_scan))
        num_samples, num_prompts = _one_row(db, "select count(*), sum(num_prompts) from samples")
        if not num_samples:
            raise UserError(
                f"--corpus: {new.inputs[0].path}{' and the others hold' if len(new.inputs) > 1 else ' holds'} "
                "no sample at all: nothing but zeros, blank lines, or tables without rows; name the files that hold "
                "the images"
            )
        num_images, num_shards = _one_row(db, f"select count(slot), max(shard) + 1 - {new.first_shard} from places")
        (unread_bytes,) = _one_row(db, f"select sum(size) from samples where reason in {UNREAD_BYTES}")
        (without_prompts,) = _one_row(db, "select count(*) from samples where reason is null and num_prompts = 0")
        (num_records,) = _one_row(
            db,
            "select count(*) from {scan} s join units u on u.file = s.filename "
            "where named is not null and u.begin + file_row_number < {limit}".format(**in_scan),
        )
        placed = replace(
            new,
            num_shards=num_shards,
            num_files=-(-num_shards // new.shards_per_file),
            num_samples=num_samples,
            num_images=num_images,
            num_prompts=num_prompts,
            failed_samples=_counted(db, "select reason from samples where reason is not null"),
            unread_bytes=unread_bytes,
            without_prompts=without_prompts,
            num_records=num_records,
            named_seen=_counted(
                db,
                "select unnest(named) from {scan} s join units u on u.file = s.filename "
                "where u.begin + file_row_number < {limit}".format(**in_scan),
            ),
            keys_seen=_counted(
                db,
                "select unnest(keys) from {scan} s join units u on u.file = s.filename where reason is null "
                "and len(prompts) = 0 and u.begin + file_row_number < {limit}".format(**in_scan),
                MAX_KEYS_SEEN,
            )
            if without_prompts
            else {},
        )
        failed_prompts = write_parts(store, db, files, placed, threads)
    return replace(placed, failed_prompts=failed_prompts)


def _prepared_bytes(db: duckdb.DuckDBPyConnection, bound: PixelBound | None) -> Iterator[np.ndarray]:
    """The bytes of the prepared pixels of each image that is new, in their order; 0 where nothing is known of them."""
    if bound is not None:
        sizes = db.sql("select distinct width, height from owners where width is not null").fetchall()
        taken = pa.array([bound.of_size(width, height) for width, height in sizes], pa.int64())
        widths, heights = (pa.array([size[axis] for size in sizes], pa.int32()) for axis in (0, 1))
        db.register("prepared", pa.table({"width": widths, "height": heights, "bytes": taken}))
        each = "select coalesce(bytes, 0)::bigint from owners left join prepared using (width, height) order by rank"
    else:
        each = "select 0::bigint from owners"
    for batch in db.sql(each).to_arrow_reader():
        yield batch.column(0).to_numpy()


def shard_starts(taken: Iterable[np.ndarray], shard_size: int, most: int) -> Iterator[int]:
    """The ranks of the images that begin a shard, given what each image takes.

    It goes by the images alone, in their order: what comes later never changes what was cut before.
    """
    rank = count = total = 0  # images before these; images and bytes of the shard that is being filled
    for sizes in taken:
        sums = np.cumsum(sizes)
        at = 0
        while at < len(sizes):
            before = int(sums[at - 1]) if at else 0
            fit = len(sizes) - at
            if most > 0:
                fit = min(fit, int(np.searchsorted(sums, before + most - total, "right")) - at)
            if count == 0:
                yield rank + at
                fit = max(fit, 1)
            fit = min(fit, shard_size - count)
            if fit <= 0:
                count = total = 0
                continue
            count += fit
            total += int(sums[at + fit - 1]) - before
            at += fit
        rank += len(sizes)


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
