"""Scanning Parquet: a row a sample. A row group is read in batches, and of it only the columns that are needed."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.cells import batches_of, leaf, opened
from pipeline.corpus.packed import DamagedError
from pipeline.corpus.reading import Reading
from pipeline.corpus.record import damaged
from pipeline.corpus.rows import Columns, samples_of
from pipeline.corpus.sample import ScanUnit
from pipeline.errors import UserError
from pipeline.storage.input_file import open_input
from schemas.samples import Sample


def scan_parquet(unit: ScanUnit, reading: Reading) -> Iterator[Sample]:
    """Rows of the row groups that begin in [begin, end), and a row for what is damaged of one.

    Raises:
        UserError: no Parquet file, or one without a column of images.
        InputReadError: the storage does not give it. An image file it does not give is that sample's row.
    """
    with open_input(unit.path) as stream:
        try:
            file = opened(stream)
        except DamagedError as error:
            raise UserError(f"--corpus: {unit.path} can't be read as Parquet ({error}); check or remove it") from error
        columns = Columns.of(file.schema_arrow, reading, unit.path)
        first = 0
        for group in range(file.metadata.num_row_groups):
            of = file.metadata.row_group(group)
            if unit.begin <= _begin(of) < unit.end:
                yield from _rows(unit, reading, columns, file, group, first)
            first += of.num_rows


def _begin(group: pq.RowGroupMetaData) -> int:
    """The byte of the file at which a row group begins."""
    column = group.column(0)
    return int(column.dictionary_page_offset or column.data_page_offset)


def _rows(
    unit: ScanUnit, reading: Reading, columns: Columns, file: pq.ParquetFile, group: int, first: int
) -> Iterator[Sample]:
    within = f"parquet:{columns.bytes}"
    row = first
    try:
        for row, batch in batches_of(file, group, first, columns.read):
            yield from samples_of(
                unit,
                reading,
                columns,
                row,
                leaf(batch, columns.bytes) if columns.bytes else None,
                leaf(batch, columns.path) if columns.path else None,
                _records(batch, columns),
                lambda number, _, row=row: (row + number, None, within),  # type: ignore[misc]
            )
            row += len(batch)
    except DamagedError as error:
        yield damaged(unit, row, f"row group {group}, {error}")


def _records(batch: pa.RecordBatch, columns: Columns) -> pa.RecordBatch:
    """The columns of a batch that prompts are read from; with none the rows are there all the same."""
    if columns.record:
        return batch.select(list(columns.record))
    return pa.RecordBatch.from_arrays([pa.nulls(len(batch))], names=[""])
