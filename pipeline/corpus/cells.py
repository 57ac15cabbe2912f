"""Single values out of the binary columns of Parquet files, read on from row to row."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus import packed
from pipeline.corpus.packed import DamagedError
from pipeline.storage.input_file import open_input

BATCH_ROWS = 32
BUFFER_BYTES = 1 << 20  # read ahead of a column, which is never read whole


class ParquetCells:
    """Values of a Parquet file by row. See `pipeline.corpus.fetch.Packed`."""

    def __init__(self, path: str) -> None:
        self._stream = open_input(path)
        try:
            self._file = opened(self._stream)
        except DamagedError:
            self._stream.close()
            raise
        groups = self._file.metadata
        self._sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
        self._values: Iterator[tuple[int, pa.Array]] = iter(())
        self._at: tuple[str, int, int] = "", -1, -1  # column, row group, first row not read of it
        self._batch: tuple[int, pa.Array] = 0, pa.array([], pa.binary())

    def take(self, offset: int, size: int | None, rest: str) -> bytes:
        """The value of a row.

        Args:
            offset: the row, counted over the whole file.
            size: does not matter.
            rest: the column; a field of a struct as `column.field`.

        Raises:
            InputReadError: the storage does not give the file.
            DamagedError: the file is damaged, or has no such value.
        """
        column, group, next_row = self._at
        first, values = self._batch
        if column != rest or offset < first:
            next_row = -1
        if not (column == rest and first <= offset < first + len(values)):
            wanted, begin = self._group_of(offset)
            if wanted != group or next_row < 0 or offset < next_row:
                self._values = batches_of(self._file, wanted, begin, [rest])
            for first, batch in self._values:
                self._batch = first, leaf(batch, rest)
                self._at = rest, wanted, first + len(batch)
                if offset < first + len(batch):
                    break
            else:
                raise DamagedError(f"row {offset}: it has no such row")
            first, values = self._batch
        value = values[offset - first].as_py()
        if value is None:
            raise DamagedError(f"row {offset}: {rest} is null")
        return bytes(value)

    def _group_of(self, row: int) -> tuple[int, int]:
        """The row group that holds a row, and its first row."""
        begin = 0
        for number, size in enumerate(self._sizes):
            if row < begin + size:
                return number, begin
            begin += size
        raise DamagedError(f"row {row}: it has {begin} rows")

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()


def opened(stream: object) -> pq.ParquetFile:
    """A Parquet file, of which columns are read piece by piece. Raises DamagedError where it is none."""
    try:
        return pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except _MALFORMED as error:
        raise DamagedError(_told(error)) from error


def batches_of(
    file: pq.ParquetFile, group: int, first_row: int, columns: list[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Some columns of a row group in batches, each with the number of its first row.

    Raises:
        DamagedError: the file is damaged; its message says from which row on.
    """
    row = first_row
    _refuse_bomb(file.metadata.row_group(group), columns, row)
    batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except _MALFORMED as error:
            raise DamagedError(f"rows {row} and on: {_told(error)}") from error
        if batch is None:
            return
        yield row, batch
        row += len(batch)


def _refuse_bomb(group: pq.RowGroupMetaData, columns: list[str], row: int) -> None:
    for number in range(group.num_columns):
        column = group.column(number)
        most = packed.FREE_BYTES + packed.MAX_RATIO * column.total_compressed_size
        if column.path_in_schema in columns and column.total_uncompressed_size > most:
            raise DamagedError(
                f"rows {row} and on: {column.path_in_schema} unpacks to over {packed.MAX_RATIO} times its size, which "
                "images do not; it is taken for a decompression bomb"
            )


def leaf(batch: pa.RecordBatch, column: str) -> pa.Array:
    """A column of a batch, or a field of a struct as `column.field`."""
    if column in batch.schema.names:
        return batch.column(column)
    name, _, field = column.rpartition(".")
    # `flatten` gives null where the struct itself is null, which `field` does not
    kind = batch.column(name).type
    return batch.column(name).flatten()[kind.get_field_index(field)]


# What Arrow raises on malformed files; a failed read of the storage is no OSError here and passes through.
_MALFORMED = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError)


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
