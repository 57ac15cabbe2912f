"""DuckDB's types that Arrow or an output format holds in another way, or not at all: they become DuckDB's own texts."""

from collections.abc import Set
from typing import Any

import duckdb

# Arrow drops the zone of the first, has no readers for the others, or loses which of its types a union holds.
_NOT_IN_ARROW = frozenset(("time with time zone", "bit", "bignum", "interval", "enum", "union"))
# CSV and JSON have texts alone for these, and Python no value for infinite, very early and very late ones.
_NOT_IN_TEXT = frozenset(
    (
        *("blob", "date", "time", "time_ns", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"),
        *("timestamp with time zone",),
    )
)


def storable(relation: duckdb.DuckDBPyRelation, *, as_texts: bool) -> duckdb.DuckDBPyRelation:
    """The relation with columns that can be written; its column names stay as they are, also those that come twice.

    Args:
        relation: result of a statement.
        as_texts: it will be shown or written as text, so that times and blobs become texts as well.
    """
    foreign = _NOT_IN_ARROW | _NOT_IN_TEXT if as_texts else _NOT_IN_ARROW
    forms = [_form(kind, foreign) for kind in relation.types]
    if all(form == str(kind) for form, kind in zip(forms, relation.types, strict=True)):
        return relation
    places = [f"c{number}" for number in range(len(forms))]
    columns = ", ".join(
        f"cast({place} as {form}) as {_quoted(name)}"
        for place, form, name in zip(places, forms, relation.columns, strict=True)
    )
    result = relation.query("result", f"select {columns} from result as _ ({', '.join(places)})")
    assert result is not None, "a select has a result"
    return result


def _form(kind: duckdb.sqltypes.DuckDBPyType, foreign: Set[str]) -> str:
    """The SQL type that a value is written as."""
    if kind.id in foreign:
        return "varchar"
    if kind.id not in ("list", "array", "struct", "tuple", "map"):
        return str(kind)
    children: list[tuple[str, Any]] = kind.children  # an array has its size among them
    inner = [(name, part if isinstance(part, int) else _form(part, foreign)) for name, part in children]
    if all(str(form) == str(part) for (_, form), (_, part) in zip(inner, children, strict=True)):
        return str(kind)
    if kind.id in ("struct", "tuple"):  # Arrow calls the fields of the latter, `row(1, 2)`, element1, element2
        named = [(name or f"element{number}", form) for number, (name, form) in enumerate(inner, start=1)]
        return f"struct({', '.join(f'{_quoted(name)} {form}' for name, form in named)})"
    if kind.id == "map":
        return f"map({', '.join(str(form) for _, form in inner)})"
    size = inner[1][1] if kind.id == "array" else ""
    return f"{inner[0][1]}[{size}]"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
