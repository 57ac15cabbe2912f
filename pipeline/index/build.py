"""Stage 0: every sample of the corpus hashed in parallel, distinct images numbered, each given to a shard.

The lowest input position owns an image; prompts that refer to the same bytes anywhere in the corpus ride in the owner's
shard.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifact.index import Generation, Index, part_path, write_index, write_part
from pipeline.cluster.session import cluster_cpus
from pipeline.cluster.stream import Stage, run_on_worker, stream_items
from pipeline.corpus.resolve import CorpusInput, common_root
from pipeline.corpus.sample import ScanUnit
from pipeline.corpus.scan import scan, scan_units
from pipeline.errors import UserError
from pipeline.storage.files import cannot_write, writing
from pipeline.storage.input_file import InputReadError
from schemas.tables import INDEX, SCAN
from schemas.views import quoted

SHARDS_PER_FILE = 64
SCAN_BATCH_ROWS = 8192
MAX_KEYS_SEEN = 6
UNREAD_BYTES = ("truncated_tar", "trailing_data")  # rows whose `size` is what the scan could not read


def extend_index(
    root: Path,
    index: Index | None,
    inputs: Sequence[CorpusInput],
    *,
    shard_size: int,
    limit: int | None,
    shards_per_file: int = SHARDS_PER_FILE,
) -> Index:
    """Scan `inputs` with Ray, assign their images to new shards, write the new files and `index.json`.

    An input whose storage does not give its bytes is left out as a whole and marked, see `Index.left_out`.

    Args:
        root: the `_index` folder.
        index: what is there already, or None.
        inputs: input files not indexed yet, in corpus order.
        shard_size: distinct images a shard.
        limit: index only the first samples of the corpus (all inputs must be new then).
        shards_per_file: how many shards share a file of the index.

    Raises:
        UserError: no input can be read or holds a sample; with a limit, one can't be read.
    """
    old = [g for g in index.generations if g.num_shards] if index else []  # without those of inputs that were left out
    first_input = sum(len(g.inputs) for g in old)
    corpus_root = old[0].corpus_root if old else common_root(inputs)
    scratch = root / "scan"
    shutil.rmtree(scratch, ignore_errors=True)
    with writing(scratch):
        scratch.mkdir(parents=True)
    unread = _scan_all(scan_units(list(inputs), first_input, corpus_root), scratch, limit)
    if unread and (limit is not None or (index is None and len(unread) == len(inputs))):
        raise UserError(f"--corpus: {next(iter(unread.values()))}; nothing was indexed: mend it and run again")
    listed: list[dict[str, Any]] = [asdict(item) for item in inputs]
    for number, why in unread.items():
        listed[number - first_input]["unread"] = why
    begin = {"first_shard": sum(g.num_shards for g in old), "first_file": sum(g.num_files for g in old)}
    if len(unread) == len(inputs):
        nothing = (
            "num_shards",
            "num_files",
            "num_samples",
            "num_images",
            "num_prompts",
            "unread_bytes",
            "without_prompts",
        )
        columns: dict[str, Any] = {**begin, **dict.fromkeys(nothing, 0), "shards_per_file": shards_per_file}
        columns.update(failed_samples={}, failed_prompts={}, keys_seen={})
    else:
        columns = run_on_worker(
            assign_shards,
            root,
            scratch,
            [str(path) for path in index.files()] if index else [],
            **begin,
            shard_size=shard_size,
            limit=limit,
            shards_per_file=shards_per_file,
        )
    new = Generation(corpus_root, listed, first_input=first_input, **columns)
    extended = Index(root, [*old, new])
    write_index(extended)
    shutil.rmtree(scratch)
    return extended


def _scan_all(units: list[ScanUnit], scratch: Path, limit: int | None) -> dict[int, str]:
    """Scan the units in parallel; with a limit in waves, until enough samples are found.

    Returns the numbers of the inputs that can't be read, with the reason; nothing of them stays in `scratch`.
    """
    wave = len(units) if limit is None else max(8, 2 * cluster_cpus())
    found = 0
    unread: dict[int, str] = {}
    for begin in range(0, len(units), wave):
        items = [{"number": n, **asdict(unit)} for n, unit in enumerate(units[begin : begin + wave], start=begin)]
        for row in stream_items(items, [Stage(_scan_batch, (str(scratch), limit), num_cpus=1)]):
            if row["failure"] is not None:
                raise UserError(row["failure"])
            if row["unread"] is not None:
                unread.setdefault(row["input"], row["unread"])
            found += row["samples"]
        if limit is not None and found >= limit:
            break
    for number, unit in enumerate(units):
        if unit.input in unread:
            _unit_path(scratch, number).unlink(missing_ok=True)
    return unread


def _unit_path(scratch: Path, number: int) -> Path:
    return scratch / f"unit-{number:08d}.parquet"


def _scan_batch(batch: pa.Table, settings: tuple[str, int | None]) -> pa.Table:
    """Scan one unit into a Parquet file of its own; bad input travels as data, Ray would bury it in tracebacks."""
    (item,) = batch.to_pylist()
    scratch, limit = settings
    path = _unit_path(Path(scratch), item.pop("number"))
    samples, failure, unread = 0, None, None
    try:
        samples = _scan_unit(ScanUnit(**item), path, limit)
    except UserError as error:
        failure = str(error)
    except InputReadError as error:
        unread = str(error)
    return pa.table(
        {
            "input": pa.array([item["input"]], pa.int32()),
            "samples": pa.array([samples], pa.int64()),
            "failure": pa.array([failure], pa.string()),
            "unread": pa.array([unread], pa.string()),
        }
    )


def _scan_unit(unit: ScanUnit, path: Path, limit: int | None) -> int:
    samples = 0
    with writing(path), pq.ParquetWriter(path, SCAN) as writer:
        rows: list[dict[str, Any]] = []
        for row in scan(unit, limit):
            rows.append(row)
            if len(rows) == SCAN_BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, SCAN))
                samples += len(rows)
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, SCAN))
    return samples + len(rows)


# Positions are (input, sample). `n` numbers the samples of this generation in corpus order.
_ASSIGN = """
create table samples as
    select *, row_number() over (order by input, sample) as n from read_parquet({scan}) {limit};
create table known as {known};
create table owners as
    select image_id, n, row_number() over (order by n) - 1 as rank
    from (select image_id, min(n) as n from samples where reason is null group by image_id)
    anti join known using (image_id);
create table repeated as
    with prompts as (
        select n, unnest(prompts).prompt_id as prompt_id, generate_subscripts(prompts, 1) as place from samples
    ),
    suspects as (
        select prompt_id from prompts group by prompt_id having count(*) > 1
        union
        select prompt_id from prompts semi join known_prompts using (prompt_id)
    )
    select n, list(place) as places
    from (
        select n, place, row_number() over (partition by prompt_id order by n, place) as occurrence, k.prompt_id as old
        from prompts semi join suspects using (prompt_id) left join known_prompts k using (prompt_id)
    )
    where occurrence > 1 or old is not null group by n;
create table placed as
    select ({first_shard} + coalesce(o.rank, before.rank, 0) // {shard_size})::integer as shard,
           case when o.n = s.n then (o.rank % {shard_size})::integer end as slot,
           coalesce({first_shard} + o.rank // {shard_size}, k.shard)::integer as image_shard,
           s.* exclude (prompts, n, keys),
           case when r.places is null then s.prompts else list_transform(s.prompts, lambda p, i:
               case when list_contains(r.places, i) then struct_update(p, status := 'duplicate_prompt_id',
                   message := 'its id was given to an earlier prompt') else p end)
           end as prompts
    from samples s
    asof left join (select n, rank from owners) before on s.n >= before.n
    left join owners o on s.image_id = o.image_id and s.reason is null
    left join known k on s.image_id = k.image_id and s.reason is null
    left join repeated r on s.n = r.n
    order by shard, s.n;
"""


def assign_shards(
    root: Path,
    scratch: Path,
    old_files: list[str],
    *,
    first_shard: int,
    first_file: int,
    shard_size: int,
    limit: int | None,
    shards_per_file: int,
) -> dict[str, Any]:
    """Number the distinct images, place every sample in a shard, write `_index` parts. Out of core: DuckDB spills."""
    with _enough_space(scratch), duckdb.connect(str(scratch / "assign.duckdb")) as db:
        db.execute(f"set temp_directory = {quoted(str(scratch / 'spill'))}")
        db.execute("set threads = 1")
        if old_files:
            listing = f"read_parquet([{', '.join(quoted(path) for path in old_files)}])"
            known = f"select image_id, shard from {listing} where slot is not null"
            known_prompts = f"select distinct unnest(prompts).prompt_id as prompt_id from {listing}"
        else:
            known = "select null::varchar as image_id, null::integer as shard where false"
            known_prompts = "select null::varchar as prompt_id where false"
        db.execute(f"create table known_prompts as {known_prompts}")
        db.execute(
            _ASSIGN.format(
                scan=quoted(str(scratch / "unit-*.parquet")),
                limit="" if limit is None else f"qualify n <= {limit}",
                known=known,
                first_shard=first_shard,
                shard_size=shard_size,
            )
        )
        num_samples, num_images, num_prompts, num_shards = _one_row(
            db,
            f"select count(*), count(slot), sum(len(prompts)), max(shard) + 1 - {first_shard} from placed",
        )
        failed_samples = _counted(db, "select reason from placed where reason is not null")
        failed_prompts = _counted(
            db, "select * from (select unnest(prompts).status from placed where reason is null) where #1 <> 'ok'"
        )
        (unread_bytes,) = _one_row(db, f"select sum(size) from placed where reason in {UNREAD_BYTES}")
        without = "from samples where reason is null and len(prompts) = 0"
        (without_prompts,) = _one_row(db, f"select count(*) {without}")
        keys_seen = _counted(db, f"select unnest(keys) {without}", MAX_KEYS_SEEN)
        if not num_samples:
            raise UserError("--corpus: the inputs hold no sample at all; is it the right folder?")
        num_files = -(-num_shards // shards_per_file)
        columns = ", ".join(f'"{name}"' for name in INDEX.names)
        for file in range(num_files):
            begin = first_shard + file * shards_per_file
            table = db.sql(
                f"select {columns} from placed where shard >= {begin} and shard < {begin + shards_per_file} "
                "order by shard, input, sample"
            ).to_arrow_table()
            table = table.cast(INDEX)
            groups = [table.filter(pc.equal(table["shard"], n)) for n in range(begin, _last_shard(table) + 1)]
            write_part(part_path(root, first_file + file), groups)
    return {
        "first_shard": first_shard,
        "num_shards": num_shards,
        "first_file": first_file,
        "num_files": num_files,
        "shards_per_file": shards_per_file,
        "num_samples": num_samples,
        "num_images": num_images,
        "num_prompts": num_prompts,
        "failed_samples": failed_samples,
        "failed_prompts": failed_prompts,
        "without_prompts": without_prompts,
        "keys_seen": keys_seen,
        "unread_bytes": unread_bytes,
    }


@contextmanager
def _enough_space(scratch: Path) -> Iterator[None]:
    """Tell DuckDB's own errors about a full disk as those of other writers are told."""
    try:
        yield
    except duckdb.Error as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise cannot_write(scratch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error


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
