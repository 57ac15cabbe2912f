"""Rows as dataclasses that are their own Arrow schema: each column stands once, with its name, type and meaning.

    @dataclass(slots=True, kw_only=True)
    class PromptRow:
        prompt_id: str = column(pa.string())

A row can't be made with a field missing or misspelt, and a table can't be read back into rows of another form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import Field, field, fields
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
    arrays = []
    for one in _columns(row):
        values: Iterable[Any] = [getattr(item, one.name) for item in rows]
        if _ROW in one.metadata:
            names = schema_of(one.metadata[_ROW]).names
            values = [
                None if value is None else [{name: getattr(item, name) for name in names} for item in value]
                for value in values
            ]
        arrays.append(pa.array(values, one.metadata[_TYPE]))
    return pa.Table.from_arrays(arrays, schema=schema_of(row))


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
            nested = one.metadata[_ROW]
            values = [None if value is None else [nested(**item) for item in value] for value in values]
        columns.append(values)
    return [row(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]
