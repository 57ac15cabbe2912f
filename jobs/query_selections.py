"""Query a pruned corpus (and answers over it) in SQL; without SQL print a summary.

Views: images, tokens (one row a visual token), prompts, errors, shards, answers, grades. Recipes are SQL that is kept
under a name: docs/queries.md shows all with their output.
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

import os
import sys

from jobs.console import run, say
from jobs.options import JobCommand, execute
from pipeline.report.settings import QuerySettings

EXAMPLES = """examples:
  <program> --pruned out/scenes
  <program> --pruned out/scenes \\
      "select reason, count(*) from errors group by reason"
  <program> --list
  <program> --pruned out/scenes --recipe kept_grid --set k=32
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
    from pipeline.report.recipe import recipe_of, recipes_table

    try:
        if not settings.list_recipes:
            _ask(settings)
        elif settings.recipe is not None:
            print(recipe_of(settings.recipe).sql, end="", flush=True)
        elif settings.format == "table":
            print_table(recipes_table())
        else:
            write_result(recipes_table(), settings.format)
    except BrokenPipeError:  # who reads, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again as it ends
    return 0


def _ask(settings: QuerySettings) -> None:
    from jobs.tables import print_table, write_result
    from pipeline.report.cache import SummaryCache
    from pipeline.report.query import ask, connect
    from pipeline.report.recipe import cook, recipe_of
    from pipeline.report.summary import summarise

    assert settings.pruned is not None, "the settings ask for it"
    recipe = None if settings.recipe is None else recipe_of(settings.recipe)
    if recipe is not None:
        recipe.told(settings.sets)  # what is wrong with them is said before anything is read
    cache = None
    if settings.sql is None and (recipe is None or recipe.reads_summaries) and settings.cache != "none":
        cache = SummaryCache(settings.cache or _user_cache(), say)
    db = connect(settings.pruned, settings.answers, settings.grades, memory_gib=settings.memory, summaries=cache)
    as_texts = settings.format != "parquet"
    if settings.sql is not None:
        write_result(ask(db, settings.sql, as_texts=as_texts), settings.format)
    elif recipe is not None:
        write_result(cook(db, recipe, settings.sets, as_texts=as_texts), settings.format)
    else:
        for title, table in summarise(db).tables.items():
            print_table(table, title)


def _user_cache() -> str:
    """Where a user's programs keep what they can make anew."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "zoo-prune", "summaries")


COMMAND = JobCommand("query", QuerySettings, work, __doc__, EXAMPLES)


def main(arguments: list[str]) -> int:
    """Run the query with these arguments; the exit status."""
    return execute(COMMAND, arguments)


if __name__ == "__main__":
    run(COMMAND)
