"""Rows as dataclasses that are their own Arrow schema: each column stands once, with its name, type and meaning.

    @dataclass(slots=True, kw_only=True)
    class PromptRow:
        prompt_id: str = column(pa.string())

A row can't be made with a field missing or misspelt, and a table can't be read back into rows of another form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import Field, field, fields
from itertools import accumulate
from typing import Any, TypeVar

import pyarrow as pa

_TYPE = "arrow"
_ROW = "row"
Row = TypeVar("Row")


def column(kind: pa.DataType, **options: Any) -> Any:
    """A column of this Arrow type. Options are those of `dataclasses.field`, `default=None` for example."""
    return field(metadata={_TYPE: kind}, **options)


def list_column(row: type[Any], **options: Any) -> Any:
    """A column of lists of structs; in Python each struct is a `row`.

    Where rows are made by the thousand, an Arrow array of the structs may stand for the list, see `structs_of`.
    """
    return field(metadata={_TYPE: pa.list_(struct_of(row)), _ROW: row}, **options)


def row_column(row: type[Any], **options: Any) -> Any:
    """A column of structs; in Python each struct is a `row`."""
    return field(metadata={_TYPE: struct_of(row), _ROW: row}, **options)


def _columns(row: type[Any]) -> tuple[Field[Any], ...]:
    return fields(row)


def schema_of(row: type[Any]) -> pa.Schema:
    """The Arrow schema of a row class: its fields, in order."""
    return pa.schema([(one.name, one.metadata[_TYPE]) for one in _columns(row)])


def struct_of(row: type[Any]) -> pa.DataType:
    """The Arrow struct of a row class."""
    return pa.struct(list(schema_of(row)))


def structs_of(row: type[Any], /, **columns: Any) -> pa.StructArray:
    """An Arrow array of structs from their fields, each a NumPy array or a list, without a `row` for each.

    Raises:
        ValueError: the fields are not those of `row`, or differ in length.
    """
    kinds = {one.name: one.metadata[_TYPE] for one in _columns(row)}
    if columns.keys() != kinds.keys():
        raise ValueError(f"{row.__name__} has the fields {', '.join(kinds)}; given: {', '.join(columns)}")
    return pa.StructArray.from_arrays(
        [pa.array(columns[name], kind) for name, kind in kinds.items()], fields=list(struct_of(row))
    )


def table_of(row: type[Row], rows: Sequence[Row]) -> pa.Table:
    """An Arrow table of rows, all of class `row`.

    Raises:
        TypeError: a row of another class.
    """
    _check(row, rows)
    return pa.Table.from_arrays(_arrays(row, rows), schema=schema_of(row))


def _check(row: type[Any], rows: Iterable[Any]) -> None:
    for item in rows:
        if type(item) is not row:
            raise TypeError(f"expected rows of {row.__name__}, found {type(item).__name__}")


def _arrays(row: type[Any], rows: Sequence[Any]) -> list[pa.Array]:
    """The columns of rows of which some may be None."""
    return [_array(one, [None if item is None else getattr(item, one.name) for item in rows]) for one in _columns(row)]


def _array(one: Field[Any], values: list[Any]) -> pa.Array:
    """The values of one column. Those of nested rows are converted field by field, with no dictionary for each."""
    kind, nested = one.metadata[_TYPE], one.metadata.get(_ROW)
    if nested is None:
        return pa.array(values, kind)
    missing = pa.array([value is None for value in values], pa.bool_())
    if pa.types.is_struct(kind):
        _check(nested, (value for value in values if value is not None))
        return pa.StructArray.from_arrays(_arrays(nested, values), fields=list(kind), mask=missing)
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, pa.StructArray) for value in given):
        items = pa.concat_arrays(given)
        if items.type != kind.value_type:
            raise TypeError(f"expected structs of {nested.__name__}, found {items.type}")
    else:
        flat = [item for value in given for item in value]
        _check(nested, flat)
        items = pa.StructArray.from_arrays(_arrays(nested, flat), fields=list(kind.value_type))
    return pa.ListArray.from_arrays(
        pa.array(accumulate((0 if value is None else len(value) for value in values), initial=0), pa.int32()),
        items,
        type=kind,
        mask=missing,
    )


def rows_of(row: type[Row], table: pa.Table) -> list[Row]:
    """The rows of an Arrow table whose columns are the fields of `row`.

    Raises:
        ValueError: the table has other columns.
    """
    names = schema_of(row).names
    if sorted(table.column_names) != sorted(names):
        raise ValueError(
            f"a table of {row.__name__} has the columns {', '.join(names)}; found {', '.join(table.column_names)}"
        )
    columns = [_values(one, table[one.name].to_pylist()) for one in _columns(row)]
    return [row(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _values(one: Field[Any], values: list[Any]) -> list[Any]:
    """The values of one column, those of nested rows as such rows."""
    nested = one.metadata.get(_ROW)
    if nested is None:
        return values
    deeper = [inner for inner in _columns(nested) if _ROW in inner.metadata]

    def row_of(item: dict[str, Any]) -> Any:
        return nested(**item | {inner.name: _values(inner, [item[inner.name]])[0] for inner in deeper})

    if pa.types.is_struct(one.metadata[_TYPE]):
        return [None if value is None else row_of(value) for value in values]
    return [None if value is None else [row_of(item) for item in value] for value in values]


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column as one array; those of a single chunk are not copied."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def views_of(column: pa.ChunkedArray) -> list[memoryview | None]:
    """The values of a `large_binary` column, as views of its memory that can't be written to."""
    array = one_chunk(column)
    _, offsets, data = array.buffers()
    if data is None:
        return [None] * len(array)
    bounds = memoryview(offsets).cast("q")[array.offset : array.offset + len(array) + 1]
    view = memoryview(data).toreadonly()
    return [
        view[begin:end] if valid else None
        for begin, end, valid in zip(bounds[:-1], bounds[1:], array.is_valid().to_pylist(), strict=True)
    ]
