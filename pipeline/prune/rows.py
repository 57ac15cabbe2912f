"""What the stages of a prune job hand to each other: one Arrow table a shard, a row a sample.

    DECODED    the index's rows, what decoding found of them (DecodedRow), their pixels
    ENCODED    the index's rows, what the model decided about them (EncodedRow)
    OUTCOME    one row: what the driver learns of the shard

A stage reads the columns that it needs as rows of a class and gives its own columns as rows of another one. The other
columns, prompts and pixels above all, stay in Arrow from stage to stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.cluster.outcomes import ENDING, Ending
from schemas.columns import column, one_chunk, row_column, rows_of, schema_of, table_of, views_of
from schemas.selections import FeatureRow, SelectionRow
from schemas.tables import INDEX

Row = TypeVar("Row")


@dataclass(slots=True, kw_only=True)
class DecodedRow:
    """A sample after decoding. It has a size where it owns an image that could be decoded."""

    shard: int = column(pa.int32())
    source: str = column(pa.string())
    image_id: str | None = column(pa.string())
    reason: str | None = column(pa.string())  # null unless the sample failed, in the scan or here
    message: str | None = column(pa.string())
    width: int | None = column(pa.int32())  # of the decoded image, pixels
    height: int | None = column(pa.int32())


@dataclass(slots=True, kw_only=True)
class EncodedRow:
    """A sample after the model. Where it owns an encoded image it has a selection, and features if kept."""

    reason: str | None = column(pa.string())  # null unless the sample failed, in any stage
    message: str | None = column(pa.string())
    selection: SelectionRow | None = row_column(SelectionRow)
    features: FeatureRow | None = row_column(FeatureRow)


@dataclass(slots=True, kw_only=True)
class ReadFacts:
    """What reading says of a whole shard; the same in each of its rows."""

    read_seconds: float = column(pa.float64())
    decode_seconds: float = column(pa.float64())


@dataclass(slots=True, kw_only=True)
class EncodeFacts:
    """What the model actor says of a whole shard; the same in each of its rows."""

    device: str = column(pa.string())  # that the model ran on: "cuda" or "cpu"
    batch_size: int = column(pa.int32())  # images a forward pass: as asked, or less where memory ran out
    encode_began: float = column(pa.float64())  # seconds since the epoch
    encode_seconds: float = column(pa.float64())
    score_seconds: float = column(pa.float64())
    select_seconds: float = column(pa.float64())


@dataclass(slots=True, kw_only=True)
class Outcome(Ending):
    """What the driver learns of a committed shard."""

    shard: int = column(pa.int32())
    images: int = column(pa.int64())  # distinct images, those that failed included
    kept: int = column(pa.int64())  # images with a selection
    samples: int = column(pa.int64())
    failed_samples: int = column(pa.int64())
    reasons: str = column(pa.string())  # JSON, failed samples per reason
    errors: int = column(pa.int64())  # rows of the errors table
    device: str | None = column(pa.string())  # that the model ran on: "cuda" or "cpu"
    batch_size: int | None = column(pa.int32())  # that it was made with


PIXELS = pa.schema([("pixels", pa.large_binary()), ("pixels_shape", pa.list_(pa.int32()))])


def _together(*schemas: pa.Schema) -> pa.Schema:
    """The columns of all schemas, each once."""
    return pa.schema({field.name: field.type for schema in schemas for field in schema})


DECODED = _together(INDEX, schema_of(DecodedRow), PIXELS, schema_of(ReadFacts), pa.schema(ENDING))
ENCODED = _together(INDEX, schema_of(EncodedRow), schema_of(ReadFacts), schema_of(EncodeFacts), pa.schema(ENDING))
OUTCOME = schema_of(Outcome)


def stage_table(schema: pa.Schema, *parts: pa.Table) -> pa.Table:
    """The columns of a stage's table out of several tables of the same rows.

    Where two tables have a column of one name, that of the later table counts.

    Raises:
        KeyError: none of the tables has the column.
    """
    columns = {name: part[name] for part in parts for name in part.column_names}
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def rows_among(row: type[Row], table: pa.Table) -> list[Row]:
    """The rows of a table that has further columns. Raises KeyError where it lacks one."""
    return rows_of(row, table.select(schema_of(row).names))


def facts_among(facts: type[Row], table: pa.Table) -> Row:
    """What a stage said of the whole shard, out of its table."""
    (first,) = rows_among(facts, table.slice(0, 1))
    return first


def same_in_each(facts: Any, count: int) -> pa.Table:
    """A table of `count` rows that all hold these facts."""
    return table_of(type(facts), [facts]).take(pa.array([0] * count, pa.int64()))


def on_its_way(count: int) -> pa.Table:
    """The columns `ENDING` of `count` rows of a healthy shard."""
    return pa.table([pa.nulls(count, field.type) for field in ENDING], schema=pa.schema(ENDING))


def pixels_table(pixels: Sequence[np.ndarray | None]) -> pa.Table:
    """The columns `PIXELS` of prepared images, uint8 arrays of any shape; null where there is none."""
    views = [None if image is None else np.ascontiguousarray(image).data for image in pixels]
    shapes = [None if image is None else image.shape for image in pixels]
    return pa.table([pa.array(views, pa.large_binary()), pa.array(shapes, PIXELS.field(1).type)], schema=PIXELS)


def pixels_of(table: pa.Table) -> list[np.ndarray | None]:
    """The prepared images of a table with the columns `PIXELS`: views of its memory, which can't be written to."""
    views, shapes = views_of(table["pixels"]), table["pixels_shape"].to_pylist()
    return [
        None if view is None else np.frombuffer(view, np.uint8).reshape(shape)
        for view, shape in zip(views, shapes, strict=True)
    ]


def nested_table(column: pa.ChunkedArray, places: Sequence[int]) -> pa.Table:
    """The structs at these places of a column, as a table with a column for each of their fields."""
    return pa.Table.from_struct_array(one_chunk(column).take(pa.array(places, pa.int64())))
