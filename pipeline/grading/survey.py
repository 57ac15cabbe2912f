"""What there is to grade by: the types of prompts, and how many references they have."""

import duckdb
import pyarrow.dataset as ds


def references_in(prompts: ds.Dataset) -> dict[str | None, int]:
    """The types of prompts in a table, with the largest number of references that one prompt of the type has."""
    with duckdb.connect() as db:
        db.register("prompts", prompts)
        return most_references(db, "prompts")


def most_references(db: duckdb.DuckDBPyConnection, prompts: str) -> dict[str | None, int]:
    """The same of what stands behind SQL's `from`."""
    return dict(db.sql(f'select type, coalesce(max(len("references")), 0) from {prompts} group by type').fetchall())
