"""Rows and tables are of one form: nothing is dropped, nulled or misspelt on the way."""

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pytest

from schemas.columns import column, list_column, row_column, rows_of, schema_of, structs_of, table_of, views_of


@dataclass(slots=True, kw_only=True)
class Part:
    name: str = column(pa.string())
    size: int | None = column(pa.int32(), default=None)


@dataclass(slots=True, kw_only=True)
class Whole:
    key: str = column(pa.string())
    parts: list[Part] | None = list_column(Part)
    first: Part | None = row_column(Part, default=None)


@dataclass(slots=True, kw_only=True)
class Deep:
    whole: Whole | None = row_column(Whole)
    wholes: list[Whole] = list_column(Whole)


@dataclass(slots=True, kw_only=True)
class Larger(Whole):
    note: str | None = column(pa.string(), default=None)


ROWS = [Whole(key="a", parts=[Part(name="x", size=1), Part(name="y")]), Whole(key="b", parts=None)]
NESTED = [
    Whole(key="a", parts=[Part(name="x", size=1), Part(name="y")]),
    Whole(key="b", parts=None, first=Part(name="z")),
    Whole(key="c", parts=[]),
    Whole(key="d", parts=[Part(name="v")], first=Part(name="w", size=2)),
]


def test_rows_survive_a_table() -> None:
    assert rows_of(Whole, table_of(Whole, ROWS)) == ROWS
    assert rows_of(Whole, table_of(Whole, [])) == []


def test_nested_rows_are_what_arrow_makes_of_dictionaries() -> None:
    table = table_of(Whole, NESTED)
    table.validate(full=True)
    assert table.equals(pa.Table.from_pylist([asdict(row) for row in NESTED], schema_of(Whole)))
    assert rows_of(Whole, table) == NESTED
    assert rows_of(Whole, table.slice(1, 2)) == NESTED[1:3]


def test_an_array_of_structs_stands_for_a_list_of_rows() -> None:
    parts = structs_of(Part, name=["x", "y"], size=np.array([1, 2]))
    rows = [Whole(key="a", parts=parts), Whole(key="b", parts=None), Whole(key="c", parts=parts.slice(1))]
    table = table_of(Whole, rows)
    table.validate(full=True)
    x, y = Part(name="x", size=1), Part(name="y", size=2)
    assert [row.parts for row in rows_of(Whole, table)] == [[x, y], None, [y]]
    with pytest.raises(ValueError, match="Part has the fields name, size; given: name, siez"):
        structs_of(Part, name=["x"], siez=[1])
    with pytest.raises(ValueError, match="length"):
        structs_of(Part, name=["x"], size=[1, 2])
    other = pa.array([{"name": "x"}])
    with pytest.raises(TypeError, match="expected structs of Part"):
        table_of(Whole, [Whole(key="a", parts=other)])  # type: ignore[arg-type]


def test_rows_are_nested_as_deep_as_you_like() -> None:
    rows = [Deep(whole=None, wholes=NESTED), Deep(whole=NESTED[3], wholes=[]), Deep(whole=NESTED[1], wholes=ROWS)]
    table = table_of(Deep, rows)
    table.validate(full=True)
    assert table.equals(pa.Table.from_pylist([asdict(row) for row in rows], schema_of(Deep)))
    assert rows_of(Deep, table) == rows


def test_the_schema_is_the_class() -> None:
    part = pa.struct([("name", pa.string()), ("size", pa.int32())])
    assert schema_of(Larger) == pa.schema(
        [("key", pa.string()), ("parts", pa.list_(part)), ("first", part), ("note", pa.string())]
    )
    assert table_of(Whole, ROWS).schema == schema_of(Whole)


def test_a_field_that_is_missing_or_misspelt_is_an_error() -> None:
    with pytest.raises(TypeError, match="parts"):
        Whole(key="a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="kye"):
        Whole(kye="a", parts=None)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        ROWS[0].kye = "a"  # type: ignore[attr-defined]


def test_rows_of_another_class_are_refused() -> None:
    with pytest.raises(TypeError, match="expected rows of Whole, found Larger"):
        table_of(Whole, [Larger(key="a", parts=None)])
    for wrong in (Deep(whole=Part(name="x"), wholes=[]), Deep(whole=None, wholes=[Part(name="x")])):  # type: ignore
        with pytest.raises(TypeError, match="expected rows of Whole, found Part"):
            table_of(Deep, [wrong])
    with pytest.raises(TypeError, match="expected rows of Whole, found NoneType"):
        table_of(Whole, [None])  # type: ignore[list-item]


def test_a_table_of_another_form_is_refused() -> None:
    table = table_of(Whole, ROWS)
    for other in (table.drop_columns(["key"]), table.append_column("kye", table["key"])):
        with pytest.raises(ValueError, match="a table of Whole has the columns key, parts, first; found"):
            rows_of(Whole, other)


def test_views_are_of_the_columns_own_memory() -> None:
    values = [b"abc", None, b"", b"defg"]
    column = pa.chunked_array([pa.array([b"x", *values], pa.large_binary()).slice(1)])
    views = views_of(column)
    assert [None if view is None else bytes(view) for view in views] == values
    address = column.chunk(0).buffers()[2].address
    assert views[3] is not None
    assert np.frombuffer(views[3], np.uint8).__array_interface__["data"][0] == address + 4
    for other in (
        pa.chunked_array([pa.array(values[:2], pa.large_binary()), pa.array(values[2:], pa.large_binary())]),
        pa.chunked_array([pa.array([None, None], pa.large_binary())]),
        pa.chunked_array([], pa.large_binary()),
    ):
        assert [None if view is None else bytes(view) for view in views_of(other)] == other.to_pylist()
