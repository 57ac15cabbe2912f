"""What there is to grade by: the types of prompts, and their references."""

from collections.abc import Iterator

import duckdb
import pyarrow.dataset as ds

_AT_A_TIME = 10_000  # prompts


def most_references(prompts: ds.Dataset) -> dict[str | None, int]:
    """The types of prompts in a table, with the largest number of references that one prompt of the type has."""
    with duckdb.connect() as db:
        db.register("prompts", prompts)
        return dict(db.sql('select type, coalesce(max(len("references")), 0) from prompts group by type').fetchall())


def references_of(prompts: ds.Dataset, kind: str | None) -> Iterator[list[str]]:
    """The references of each prompt of a type that has some; read as far as they are taken."""
    with duckdb.connect() as db:
        db.register("prompts", prompts)
        found = db.execute(
            'select "references" from prompts where type is not distinct from ? and len("references") > 0', [kind]
        )
        while rows := found.fetchmany(_AT_A_TIME):
            yield from (references for (references,) in rows)
