"""Stage tables: payloads as they were given, columns that are missing are an error."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.prune.rows import (
    PIXELS,
    DecodedRow,
    ReadFacts,
    facts_among,
    nested_table,
    pixels_of,
    pixels_table,
    rows_among,
    same_in_each,
    stage_table,
)

FACTS = ReadFacts(read_seconds=1.0, decode_seconds=2.0)


def test_pixels_of_any_shape_come_back_without_a_copy() -> None:
    images = [
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        None,
        np.arange(60, dtype=np.uint8).reshape(4, 5, 3)[::2],  # not contiguous
        np.zeros((0, 4, 4, 3), np.uint8),
    ]
    table = pixels_table(images)
    assert table.schema == PIXELS
    for together in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        found = pixels_of(together)
        assert [None if image is None else image.shape for image in found] == [(2, 4, 3), None, (2, 5, 3), (0, 4, 4, 3)]
        for image, given in zip(found, images, strict=True):
            assert given is None or np.array_equal(image, given)
    first = pixels_of(table)[0]
    assert first is not None
    buffer = table["pixels"].chunk(0).buffers()[2]
    assert first.__array_interface__["data"][0] == buffer.address


def test_a_stage_table_takes_the_later_of_two_columns_and_lacks_none() -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.string())])
    first, second = pa.table({"a": [1, 2], "b": ["x", "y"]}), pa.table({"b": ["v", "w"]})
    table = stage_table(schema, first, second)
    assert table.schema == schema
    assert table.to_pydict() == {"a": [1, 2], "b": ["v", "w"]}
    with pytest.raises(KeyError, match="a"):
        stage_table(schema, second)
    with pytest.raises(pa.ArrowInvalid, match="length"):
        stage_table(schema, first, second.slice(1))


def test_rows_of_a_table_without_their_columns_are_refused() -> None:
    table = same_in_each(FACTS, 3)
    assert rows_among(ReadFacts, table) == [FACTS] * 3
    assert facts_among(ReadFacts, table.append_column("more", pa.array([1, 2, 3]))) == FACTS
    with pytest.raises(KeyError, match="shard"):
        rows_among(DecodedRow, table)


def test_structs_become_a_table_in_the_order_that_is_asked_for() -> None:
    column = pa.chunked_array([pa.array([{"a": 1}, None]), pa.array([{"a": 3}])])
    assert nested_table(column, [2, 0]).to_pydict() == {"a": [3, 1]}
    assert nested_table(column, []).schema == pa.schema([("a", pa.int64())])
