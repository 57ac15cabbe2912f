"""Asking an artifact questions in SQL: DuckDB views over its committed files, read-only."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.artifact import Artifact
from pipeline.errors import UserError
from schemas.tables import ANSWERS, ERRORS, PROMPTS, SELECTIONS
from schemas.views import quoted, table_view, tokens_view

_READING = {"SELECT", "EXPLAIN"}
_TABLES = (("images", "selections", SELECTIONS), ("prompts", "prompts", PROMPTS), ("errors", "errors", ERRORS))


@dataclass(frozen=True)
class Summary:
    """The answer when no SQL is given: a few named tables."""

    tables: dict[str, pa.Table]


def connect(pruned: Path, answers: Sequence[Path] = ()) -> duckdb.DuckDBPyConnection:
    """A connection with the views `images`, `tokens`, `prompts`, `errors`, `shards` and `answers`, and nothing else.

    The connection can read the artifact's committed files and touch no other file. Works on unfinished runs.

    Args:
        pruned: output of a prune job.
        answers: outputs of answer jobs over it, any number; their rows differ in `tokens`.

    Raises:
        UserError: a folder is no artifact of that kind.
    """
    artifact = Artifact(pruned)
    artifact.require_job("prune", "--pruned")
    answered = [Artifact(path) for path in answers]
    for one in answered:
        one.require_job("answer", "--answers")
    db = duckdb.connect()
    allowed = []
    for view, table, schema in _TABLES:
        files = artifact.files_of(table)
        allowed += files
        db.execute(table_view(view, files, _columns(db, schema)))
    db.execute(tokens_view())
    files = [file for one in answered for file in one.files_of("answers")]
    allowed += files
    db.execute(table_view("answers", files, _columns(db, ANSWERS)))
    db.register("shards", _shards(artifact))
    db.execute(f"set allowed_paths = [{', '.join(map(quoted, allowed))}]")
    db.execute("set enable_external_access = false")
    db.execute("set lock_configuration = true")
    return db


def ask(db: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """The result of one reading statement.

    Raises:
        UserError: not SQL, a statement that would write, or several statements.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(f"the SQL can't be read: {_message(error)}") from error
    if len(statements) != 1:
        raise UserError(f"{len(statements)} SQL statements were given, expected one")
    kind = statements[0].type.name.upper()
    if kind not in _READING:
        raise UserError(
            f"only statements that read are run (select, explain), not {kind.lower()}; the artifact never changes"
        )
    try:
        return db.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        raise UserError(f"the SQL can't be run: {_message(error)}") from error


def summarise(db: duckdb.DuckDBPyConnection) -> Summary:
    """What most people want to know first."""
    queries = {
        "images": """
            select count(*) as images, sum(num_tokens) as tokens, sum(num_kept) as kept,
                   round(100 * sum(num_kept) / sum(num_tokens), 2) as kept_percent,
                   (select count(*) from shards) as shards,
                   (select sum(size_bytes) from shards)::bigint as size_bytes
            from images""",
        "selections per image": """
            select num_tokens as tokens, num_kept as kept, count(*) as images,
                   round(avg(sensitivity_mean), 4) as sensitivity_mean,
                   round(avg(sensitivity_max / nullif(sensitivity_mean, 0)), 2) as max_over_mean,
                   round(avg(last_gain), 4) as last_gain
            from images group by all order by images desc, tokens, kept limit 10""",
        "prompts": """
            select coalesce(type, '-') as type, count(*) as prompts, count(*) filter (status = 'ok') as ok
            from prompts group by type order by type""",
        "errors": "select reason, count(*) as inputs, min(source) as example from errors group by reason order by all",
        "seconds per stage": """
            select sum(seconds.read) as read, sum(seconds.decode) as decode, sum(seconds.encode) as encode,
                   sum(seconds.score) as score, sum(seconds."select") as "select", sum(seconds.write) as write
            from shards""",
    }
    if db.sql("select * from answers limit 1").fetchall():
        return Summary({**{name: ask(db, sql) for name, sql in queries.items()}, "accuracy, %": accuracy(db)})
    return Summary({name: ask(db, sql) for name, sql in queries.items()})


def accuracy(db: duckdb.DuckDBPyConnection) -> pa.Table:
    """Exact-match accuracy in percent: one row a prompt type and one for all, one column a number of visual tokens.

    Prompts without references do not count; no column where nothing could be graded.
    """
    rows = (
        db.sql("""
        select coalesce(type, '-') as type, tokens, count(*) as graded, 100 * avg(correct::integer) as accuracy
        from (select type, tokens, correct from answers union all select 'all', tokens, correct from answers)
        where correct is not null group by all
    """)
        .order("tokens, type = 'all', type")
        .to_arrow_table()
        .to_pylist()
    )
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = table.setdefault(row["type"], {"type": row["type"], "graded": row["graded"]})
        line[f"{row['tokens']} tokens"] = round(row["accuracy"], 1)
    columns = [f"{tokens} tokens" for tokens in dict.fromkeys(row["tokens"] for row in rows)]
    return pa.Table.from_pylist(
        list(table.values()),
        pa.schema([("type", pa.string()), ("graded", pa.int64()), *((name, pa.float64()) for name in columns)]),
    )


def _shards(artifact: Artifact) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for record in artifact.commits():
        rows.append(
            {
                "shard": record.shard,
                "images": record.files["selections"].rows,
                "samples": record.counts.get("samples", 0),
                "prompts": record.files["prompts"].rows,
                "errors": record.files["errors"].rows,
                "size_bytes": sum(entry.size_bytes for entry in record.files.values()),
                "seconds": {stage: record.seconds.get(stage, 0.0) for stage in _STAGES},
            }
        )
    return pa.Table.from_pylist(rows, _SHARDS)


_STAGES = ("read", "decode", "encode", "score", "select", "write")
_SHARDS = pa.schema(
    [
        ("shard", pa.int32()),
        ("images", pa.int64()),
        ("samples", pa.int64()),
        ("prompts", pa.int64()),
        ("errors", pa.int64()),
        ("size_bytes", pa.int64()),
        ("seconds", pa.struct([(stage, pa.float64()) for stage in _STAGES])),
    ]
)


def _columns(db: duckdb.DuckDBPyConnection, schema: pa.Schema) -> str:
    """Column definitions of an empty table of this schema, in DuckDB's types."""
    db.register("_empty", schema.empty_table())
    described = db.sql("describe _empty").fetchall()
    db.unregister("_empty")
    return ", ".join(f'"{name}" {kind}' for name, kind, *_ in described)


def _message(error: Exception) -> str:
    """DuckDB's message without its picture of the statement, on one line."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())
