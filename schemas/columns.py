"""Rows as dataclasses that are their own Arrow schema: each column stands once, with its name, type and meaning.

    @dataclass(slots=True, kw_only=True)
    class PromptRow:
        prompt_id: str = column(pa.string())

A row can't be made with a field missing or misspelt, and a table can't be read back into rows of another form.
"""

from collections.abc import Sequence
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
    """A column of lists of structs; in Python each struct is a `row`."""
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


def table_of(row: type[Row], rows: Sequence[Row]) -> pa.Table:
    """An Arrow table of rows, all of class `row`.

    Raises:
        TypeError: a row of another class.
    """
    for item in rows:
        if type(item) is not row:
            raise TypeError(f"expected rows of {row.__name__}, found {type(item).__name__}")
    return pa.Table.from_arrays(_arrays(row, rows), schema=schema_of(row))


def _arrays(row: type[Any], rows: Sequence[Any]) -> list[pa.Array]:
    return [_array(one, [getattr(item, one.name) for item in rows]) for one in _columns(row)]


def _array(one: Field[Any], values: list[Any]) -> pa.Array:
    """The values of one column. Those of nested rows are converted field by field, with no dictionary for each."""
    kind, nested = one.metadata[_TYPE], one.metadata.get(_ROW)
    if nested is None:
        return pa.array(values, kind)
    given = [value for value in values if value is not None]
    if pa.types.is_struct(kind):
        places = accumulate((value is not None for value in values), initial=0)
        indices = [None if value is None else place for value, place in zip(values, places, strict=False)]
        return _structs(nested, given).take(pa.array(indices, pa.int64()))
    lengths = [0 if value is None else len(value) for value in values]
    return pa.ListArray.from_arrays(
        pa.array(accumulate(lengths, initial=0), pa.int32()),
        _structs(nested, [item for value in given for item in value]),
        type=kind,
        mask=pa.array([value is None for value in values], pa.bool_()),
    )


def _structs(row: type[Any], rows: Sequence[Any]) -> pa.StructArray:
    return pa.StructArray.from_arrays(_arrays(row, rows), fields=list(struct_of(row)))


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
    columns = []
    for one in _columns(row):
        values = table[one.name].to_pylist()
        if _ROW in one.metadata:
            values = [None if value is None else _nested(one.metadata[_ROW], value) for value in values]
        columns.append(values)
    return [row(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _nested(row: type[Any], value: dict[str, Any] | list[dict[str, Any]]) -> Any:
    return row(**value) if isinstance(value, dict) else [row(**item) for item in value]
