"""Query a pruned corpus (and answers over it) in SQL; without SQL print a summary.

Views: images, tokens (one row a visual token), prompts, errors, shards, answers.
"""

from pathlib import Path

from jobs.console import input_path, parser, run
from jobs.tables import FORMATS, print_table, write_result
from pipeline.errors import UserError
from pipeline.report.query import ask, connect
from pipeline.report.summary import summarise

EXAMPLES = """examples:
  python -m jobs.query_selections --pruned out/scenes
  python -m jobs.query_selections --pruned out/scenes "select reason, count(*) from errors group by reason"
  python -m jobs.query_selections --pruned out/scenes --format csv \\
      "select row, col, avg(pick) from tokens where pick is not null group by all order by all"
  python -m jobs.query_selections --pruned out/scenes --answers out/answers \\
      "select prompt, answer, p.references from answers a join prompts p using (prompt_id) where not correct limit 10"
"""


def main(arguments: list[str]) -> int:
    """Parse, ask, print; the exit status."""
    options = parser(__doc__, EXAMPLES)
    options.add_argument("--pruned", required=True, metavar="FOLDER", help="the output of jobs.prune_corpus")
    options.add_argument("--answers", action="append", default=[], metavar="FOLDER",
                         help="the output of jobs.answer_corpus; repeatable")  # fmt: skip
    options.add_argument("--format", default="table", choices=FORMATS, help="default: table")
    options.add_argument("sql", nargs="?", help="one reading statement")
    given = options.parse_args(arguments)
    pruned = Path(input_path("--pruned", given.pruned)).resolve()
    db = connect(pruned, [Path(input_path("--answers", path)).resolve() for path in given.answers])
    if given.sql is not None:
        write_result(ask(db, given.sql), given.format)
        return 0
    if given.format != "table":
        raise UserError(f"--format {given.format}: the summary is for people; give SQL to get data")
    for title, table in summarise(db).tables.items():
        print_table(table, title)
    return 0


if __name__ == "__main__":
    run(main)
