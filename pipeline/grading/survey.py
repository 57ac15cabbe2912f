"""What there is to grade by: the types of prompts, and their references."""

from collections.abc import Iterator

import duckdb
import pyarrow.dataset as ds

_AT_A_TIME = 10_000  # prompts


def references_in(prompts: ds.Dataset) -> dict[str | None, int]:
    """The types of prompts in a table, with the largest number of references that one prompt of the type has."""
    with duckdb.connect() as db:
        db.register("prompts", prompts)
        return most_references(db, "prompts")


def references_of(prompts: ds.Dataset, kind: str | None) -> Iterator[list[str]]:
    """The references of each prompt of a type that has some; read as far as they are taken."""
    with duckdb.connect() as db:
        db.register("prompts", prompts)
        yield from references_among(db, "prompts", kind)


def most_references(db: duckdb.DuckDBPyConnection, prompts: str) -> dict[str | None, int]:
    """The same of what stands behind SQL's `from`."""
    return dict(db.sql(f'select type, coalesce(max(len("references")), 0) from {prompts} group by type').fetchall())


def references_among(db: duckdb.DuckDBPyConnection, prompts: str, kind: str | None) -> Iterator[list[str]]:
    """The same of what stands behind SQL's `from`."""
    found = db.execute(
        f'select "references" from {prompts} where type is not distinct from ? and len("references") > 0', [kind]
    )
    while rows := found.fetchmany(_AT_A_TIME):
        yield from (references for (references,) in rows)
