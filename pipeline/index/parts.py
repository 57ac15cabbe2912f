"""The files of the index, from the scanned units and the tables that say where each sample goes.

DuckDB holds what decides; the samples themselves, prompts above all, go from file to file in Arrow.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifact.index import Generation, part_key, write_part
from pipeline.storage import Store
from schemas.statuses import OK
from schemas.tables import INDEX

BATCH_ROWS = 1 << 16


class _Lane:
    """Rows of a query as Arrow tables, taken as many at a time as are asked for."""

    def __init__(self, db: duckdb.DuckDBPyConnection, sql: str) -> None:
        self._reader = db.cursor().sql(sql).to_arrow_reader(BATCH_ROWS)
        self._held = self._reader.schema.empty_table()

    def take(self, count: int) -> pa.Table:
        """The next rows, fewer only at the end."""
        return self.take_while(lambda held: min(count, len(held)), lambda held: len(held) >= count)

    def below(self, column: str, bound: int) -> pa.Table:
        """The next rows of which a column, by which the query is ordered, is below a bound."""

        def lower(held: pa.Table) -> int:
            return int(np.searchsorted(held[column].to_numpy(), bound))

        return self.take_while(lower, lambda held: lower(held) < len(held))

    def take_while(self, count: Callable[[pa.Table], int], enough: Callable[[pa.Table], bool]) -> pa.Table:
        """As many of the rows that are held as `count` says, once they are enough."""
        while not enough(self._held):
            batch = next(self._reader, None)
            if batch is None:
                break
            self._held = pa.concat_tables([self._held, pa.table(batch)])
        number = count(self._held)
        taken, self._held = self._held.slice(0, number), self._held.slice(number)
        return taken


def write_parts(
    store: Store, db: duckdb.DuckDBPyConnection, files: list[str], new: Generation, threads: int
) -> dict[str, int]:
    """Write the files of a generation of the index.

    A file's rows are those that stand where its shards are filled, then, shard by shard, those that moved there.

    Args:
        store: of the artifact.
        db: with the tables `places`, `mended` and `moved` of `assign_shards`.
        files: the scanned units, in order.
        new: the generation.
        threads: that write files.

    Returns:
        The prompts that can't be posed, by their status, of samples that did not fail.
    """
    statuses: Counter[str] = Counter()
    moved = _Lane(db, "select * from moved order by shard, n")
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number, rows in enumerate(_by_file(_in_place(db, files, new.num_samples), new)):
                begin = new.first_shard + number * new.shards_per_file
                last = min(begin + new.shards_per_file, new.first_shard + new.num_shards) - 1
                movers = moved.below("shard", last + 1).select(INDEX.names).cast(INDEX)
                for table in (rows, movers):
                    statuses.update(_not_ok(table))
                writing.append(
                    pool.submit(_write_file, store, part_key(new.first_file + number), rows, movers, begin, last)
                )
                while len(writing) > threads:
                    writing.popleft().result()
            while writing:
                writing.popleft().result()
        except BaseException:
            for one in writing:
                one.cancel()
            raise
    return dict(sorted(statuses.items(), key=lambda one: (-one[1], one[0])))


def _write_file(store: Store, key: str, rows: pa.Table, movers: pa.Table, first: int, last: int) -> None:
    """One file of the index; both tables are ordered by shard."""
    groups = []
    for shard in range(first, last + 1):
        parts = []
        for table in (rows, movers):
            shards = table["shard"].to_numpy()
            begin, end = np.searchsorted(shards, [shard, shard + 1])
            parts.append(table.slice(int(begin), int(end - begin)))
        groups.append(pa.concat_tables(parts).combine_chunks())
    write_part(store, key, groups)


def _not_ok(table: pa.Table) -> Counter[str]:
    """The statuses of prompts that can't be posed, of samples that did not fail."""
    prompts = table.filter(pc.is_null(table["reason"]))["prompts"].combine_chunks()
    found: Counter[str] = Counter()
    for chunk in prompts.chunks if isinstance(prompts, pa.ChunkedArray) else [prompts]:
        status = chunk.flatten().field("status")
        for counted in pc.value_counts(status.filter(pc.not_equal(status, OK))).to_pylist():
            found[counted["values"]] += counted["counts"]
    return found


def _by_file(tables: Iterable[pa.Table], new: Generation) -> Iterator[pa.Table]:
    """The rows of each file of the index, out of tables that are ordered by shard together."""
    end = new.first_shard + new.shards_per_file
    held: list[pa.Table] = []
    for table in tables:
        rest = table
        while len(rest) and rest["shard"][-1].as_py() >= end:
            cut = int(np.searchsorted(rest["shard"].to_numpy(), end))
            yield pa.concat_tables([*held, rest.slice(0, cut)])
            held, rest = [], rest.slice(cut)
            end += new.shards_per_file
        held.append(rest)
    yield pa.concat_tables(held)


def _in_place(db: duckdb.DuckDBPyConnection, files: list[str], count: int) -> Iterator[pa.Table]:
    """The samples that stay where they stand, as tables of the index in their order."""
    places = _Lane(db, "select n, shard, slot, image_shard, shard = home as stays from places order by n")
    mended = _Lane(db, "select n, prompts from mended order by n")
    columns = [name for name in INDEX.names if name not in ("shard", "slot", "image_shard")]
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns):
            place = places.take(len(batch))
            table = pa.table(batch).slice(0, len(place))  # fewer at the end of a corpus with a limit
            if not len(table):
                return
            new_prompts = mended.below("n", place["n"][-1].as_py() + 1)
            for name in ("shard", "slot", "image_shard"):
                table = table.append_column(name, place[name])
            table = table.select(INDEX.names).cast(INDEX)
            if len(new_prompts):
                table = _with_prompts(table, place["n"].to_numpy(), new_prompts)
            yield table if pc.all(place["stays"]).as_py() else table.filter(place["stays"])


def _with_prompts(table: pa.Table, numbers: np.ndarray, mended: pa.Table) -> pa.Table:
    """The table with the prompts of some of its rows replaced."""
    both = pa.chunked_array([*table["prompts"].chunks, *mended["prompts"].cast(INDEX.field("prompts").type).chunks])
    order = np.arange(len(table))
    order[np.searchsorted(numbers, mended["n"].to_numpy())] = len(table) + np.arange(len(mended))
    prompts = both.combine_chunks().take(pa.array(order))
    return table.set_column(table.column_names.index("prompts"), INDEX.field("prompts"), prompts)
