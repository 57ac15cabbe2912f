"""Scanning an Arrow stream file, as `datasets.save_to_disk` writes them: a row a sample.

Its batches are not compressed, so the encoded bytes of an image are a run of the file's bytes, which is where they are
read again.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.corpus.cells import leaf
from pipeline.corpus.packed import DamagedError
from pipeline.corpus.reading import Reading
from pipeline.corpus.record import damaged
from pipeline.corpus.rows import Columns, samples_of
from pipeline.corpus.sample import ScanUnit
from pipeline.errors import UserError
from pipeline.storage.input_file import open_input
from schemas.samples import Sample

_MALFORMED = (pa.ArrowException, OSError, ValueError, MemoryError, EOFError, StopIteration)
_COMPRESSED = "its batches are compressed; save it again with datasets, which compresses none"


def scan_arrow(unit: ScanUnit, reading: Reading) -> Iterator[Sample]:
    """A sample for every row, and a last row for what is damaged.

    Raises:
        UserError: no Arrow stream, or one without a column of images.
        InputReadError: the storage does not give it. An image file it does not give is that sample's row.
    """
    with open_input(unit.path) as stream:
        messages = pa.ipc.MessageReader.open_stream(stream)
        try:
            schema = pa.ipc.read_schema(messages.read_next_message())
        except _MALFORMED as error:
            raise UserError(
                f"--corpus: {unit.path} can't be read as an Arrow stream ({_told(error)}); check or remove it"
            ) from error
        columns = Columns.of(schema, reading, unit.path)
        row = 0
        try:
            for begin, body, batch in _batches(stream, messages, schema):
                yield from _rows(unit, reading, columns, row, begin, body, batch)
                row += len(batch)
        except DamagedError as error:
            yield damaged(unit, row, f"rows {row} and on: {error}")


def _batches(
    stream: object, messages: pa.ipc.MessageReader, schema: pa.Schema
) -> Iterator[tuple[int, pa.Buffer, pa.RecordBatch]]:
    """Each batch with its bytes, and where in the file these begin.

    Raises:
        DamagedError: the file is damaged from there on.
    """
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        except _MALFORMED as error:
            raise DamagedError(_told(error)) from error
        try:
            if message.type != "record batch":
                raise DamagedError(f"it holds a message of the kind {message.type}, which is not read")
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate(full=True)  # offsets of a file that somebody else made
        except DamagedError:
            raise
        except _MALFORMED as error:
            raise DamagedError(_told(error)) from error
        end: int = stream.tell()  # type: ignore[attr-defined]
        yield end - message.body.size, message.body, batch


def _rows(
    unit: ScanUnit, reading: Reading, columns: Columns, row: int, begin: int, body: pa.Buffer, batch: pa.RecordBatch
) -> Iterator[Sample]:
    held = leaf(batch, columns.bytes) if columns.bytes else None

    begins = None if held is None else _addresses(held) - body.address

    def place_of(number: int, values: pa.Array) -> tuple[int, int | None, None]:
        assert begins is not None, "only rows with bytes have a place in the file"
        inside, size = int(begins[number]), len(values[number].as_buffer())
        if size and not 0 <= inside <= body.size - size:
            raise DamagedError(_COMPRESSED)
        return (begin + inside if size else begin), size, None

    records = batch.select([name for name in columns.record])
    if not columns.record:
        records = pa.RecordBatch.from_arrays([pa.nulls(len(batch))], names=[""])
    named = leaf(batch, columns.path) if columns.path else None
    yield from samples_of(unit, reading, columns, row, held, named, records, place_of)


def _addresses(values: pa.Array) -> np.ndarray:
    """Where in memory the value of each row begins."""
    _, offsets, data = values.buffers()
    kind = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    begins = np.frombuffer(offsets, kind)[values.offset : values.offset + len(values)].astype(np.int64)
    return begins + (0 if data is None else data.address)


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
