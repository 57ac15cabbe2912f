"""Result tables on standard output: for people, or as CSV, JSON or Parquet for programs."""

import json
import math
import sys
from decimal import Decimal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.cells import cell_len, set_cell_size

from schemas.wording import visible

MAX_WIDTH = 60  # columns of a terminal that one cell may take; what is piped is not cut


def print_table(table: pa.Table, title: str | None = None) -> None:
    """Aligned columns, numbers to the right, null as '-'; one line a row, however wide.

    Aligned by the widths a terminal gives to characters, which rich knows, but not by rich's own tables: these take a
    millisecond a row and fold what is wider than the terminal.
    """
    limit = MAX_WIDTH if sys.stdout.isatty() else None
    if title:
        print(title)
    columns = [
        (visible(name), [_cell(value, limit) for value in table[name].to_pylist()], _is_number(table[name].type))
        for name in table.column_names
    ]
    widths = [max(map(cell_len, (name, *cells))) for name, cells, _ in columns]
    for row in range(-1, len(table)):
        cells_of_row = (
            _pad(name if row < 0 else cells[row], width, right)
            for (name, cells, right), width in zip(columns, widths, strict=True)
        )
        print(f"  {'  '.join(cells_of_row)}".rstrip(" "))
    print(flush=True)


def write_result(table: pa.Table, form: str) -> None:
    """Write a query's result to standard output as `QuerySettings.format` says.

    JSON is one object a line; it has no numbers that are not finite, they become null.
    """
    if form == "table" and table.column_names == ["explain_key", "explain_value"]:
        print("\n".join(table["explain_value"].to_pylist()))
    elif form == "table":
        print_table(table)
    elif form == "json":
        for row in table.to_pylist():
            print(_json(row))
    elif form == "csv":
        pa_csv.write_csv(_flat(table), sys.stdout.buffer)
    else:
        pq.write_table(table, sys.stdout.buffer)
    sys.stdout.flush()


def _json(value: object) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, default=str, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(table: pa.Table) -> pa.Table:
    """Nested columns as JSON text: CSV has no other way to hold them."""
    for number, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [None if v is None else _json(v) for v in table[field.name].to_pylist()]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
    return table


def _cell(value: object, limit: int | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):  # the latter: DuckDB's sum of integers
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    text = visible(str(value))
    return text if limit is None or cell_len(text) <= limit else set_cell_size(text, limit - 3).rstrip(" ") + "..."


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space
