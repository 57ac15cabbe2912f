"""Query a pruned corpus (and answers over it) in SQL; without SQL print a summary.

Views: images, tokens (one row a visual token), prompts, errors, shards, answers, grades.
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

import os
import sys

from jobs.console import run
from jobs.options import JobCommand, execute
from pipeline.report.settings import QuerySettings

EXAMPLES = """examples:
  <program> --pruned out/scenes
  <program> --pruned out/scenes \\
      "select reason, count(*) from errors group by reason"
  <program> --pruned out/scenes --format csv \\
      "select row, col, avg(pick) from tokens where pick is not null group by all order by all"
  <program> --pruned out/scenes --answers out/answers \\
      "select prompt, answer, p.references from answers a join prompts p using (prompt_id)
       where status = 'ok' and not correct limit 10"
  <program> --pruned out/scenes --answers out/answers --grades out/grades \\
      "select g.type, metric, avg(g.score) from grades g group by all order by all"
"""


def work(settings: QuerySettings) -> int:
    """Ask, print; the exit status."""
    from jobs.tables import print_table, write_result  # here, so that --help need not wait for Arrow and DuckDB
    from pipeline.report.query import ask, connect
    from pipeline.report.summary import summarise

    db = connect(settings.pruned, settings.answers, settings.grades)
    try:
        if settings.sql is not None:
            write_result(ask(db, settings.sql, as_texts=settings.format != "parquet"), settings.format)
        else:
            for title, table in summarise(db).tables.items():
                print_table(table, title)
    except BrokenPipeError:  # who reads, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again as it ends
    return 0


COMMAND = JobCommand("query", QuerySettings, work, __doc__, EXAMPLES)


def main(arguments: list[str]) -> int:
    """Run the query with these arguments; the exit status."""
    return execute(COMMAND, arguments)


if __name__ == "__main__":
    run(COMMAND)
