"""Result tables on standard output: for people, or as CSV, JSON or Parquet for programs."""

import json
import math
import sys

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

FORMATS = ("table", "csv", "json", "parquet")
MAX_WIDTH = 60


def print_table(table: pa.Table, title: str | None = None) -> None:
    """Aligned columns, numbers to the right, null as '-'."""
    if title:
        print(title)
    columns = [
        (name, [_cell(v) for v in table[name].to_pylist()], _is_number(table[name].type)) for name in table.column_names
    ]
    widths = [max([len(name), *map(len, cells)]) for name, cells, _ in columns]
    print("  " + "  ".join(_pad(name, w, right) for (name, _, right), w in zip(columns, widths, strict=True)).rstrip())
    for row in range(len(table)):
        cells_of_row = (_pad(cells[row], w, right) for (_, cells, right), w in zip(columns, widths, strict=True))
        print("  " + "  ".join(cells_of_row).rstrip())
    print(flush=True)


def write_result(table: pa.Table, form: str) -> None:
    """Write a query's result to standard output in one of `FORMATS`.

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


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    text = str(value)
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 3] + "..."


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
