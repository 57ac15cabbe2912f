"""What most people want to know of an artifact first: a few tables, and how many answers are right."""

from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.budget import Budget, parse_answer_budget
from pipeline.report.query import ask


@dataclass(frozen=True)
class Summary:
    """What is shown when no SQL is given: a few tables by their titles."""

    tables: dict[str, pa.Table]


def summarise(db: duckdb.DuckDBPyConnection) -> Summary:
    """The tables that most people want to see first; accuracy is among them where there are answers."""
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
    """Mean score in percent: a row for each prompt type and one for all, a column for each budget.

    The column `metric` says what the scores are. Prompts without references do not count. Where nothing could be
    graded there is no column.
    """
    rows = ask(
        db,
        """
        select coalesce(type, '-') as type, grouping(type) as total, budget, seen,
               string_agg(distinct metric, ', ' order by metric) as metric,
               count(*) as graded, 100 * avg(score) as accuracy
        from (
            -- answers of an older form have neither metric nor score
            select * replace (
                       coalesce(metric, 'exact') as metric,
                       case when metric is null then correct::float else score end as score
                   ), avg(tokens) over (partition by budget) as seen
            from answers
        )
        where score is not null
        group by grouping sets ((type, budget, seen), (budget, seen))
        order by seen, budget, total, type""",
    ).to_pylist()
    table: dict[tuple[int, str], dict[str, Any]] = {}  # a corpus may have a type of its own by the name of "all"
    for row in rows:
        kind = "all" if row["total"] else row["type"]
        line = table.setdefault((row["total"], kind), {"type": kind, "metric": row["metric"], "graded": row["graded"]})
        line[_title(row["budget"])] = round(row["accuracy"], 1)
    columns = [_title(budget) for budget in dict.fromkeys(row["budget"] for row in rows)]
    return pa.Table.from_pylist(
        list(table.values()),
        pa.schema(
            [
                ("type", pa.string()),
                ("metric", pa.string()),
                ("graded", pa.int64()),
                *((name, pa.float64()) for name in columns),
            ]
        ),
    )


def _title(budget: str) -> str:
    asked = parse_answer_budget(budget, "--tokens")
    if not isinstance(asked, Budget):
        return budget
    return f"{budget} of tokens" if asked.kind == "ratio" else f"{budget} tokens"
