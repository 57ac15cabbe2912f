"""Grade answers that exist by another metric, or by other answers; nothing is generated.

zoo-prune grade --answers out/answers --metric caption=object_f1 --output out/grades
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

from jobs.console import run, say
from jobs.options import JobCommand, execute
from pipeline.grading.settings import GradeSettings
from schemas.wording import counted

EXAMPLES = """examples:
  <program> --answers out/answers --metric vqa --metric caption=cider_d \\
      --output out/grades
  <program> --answers out/answers-32 --against out/answers-all \\
      --output out/agreement-32

The answers stay as they are. What each metric is: docs/grading.md.
"""


def work(settings: GradeSettings) -> int:
    """Grade, print what the grades come to; the exit status."""
    from jobs.tables import print_table  # here, so that --help need not wait for Arrow and DuckDB
    from pipeline.grading.job import grade_corpus
    from pipeline.grading.summary import summary_table

    result = grade_corpus(settings, say)
    if result.shards_done:
        say(f"graded {counted(result.answers, 'answers')} in {counted(result.shards_done, 'shards')}")
    else:
        say(f"{counted(result.shards_skipped, 'shards', 'are')} there already in {settings.output}; nothing to do")
    if result.ungraded:
        why = "refused, or without the references that the metric takes"
        say(f"{counted(result.ungraded, 'answers', 'have')} no score: {why}")
    by = "" if settings.against is None else f" against {settings.against}"
    print_table(summary_table(result.scores), title=f"scores{by} x 100, 95 % bootstrap intervals over images")
    return 0


COMMAND = JobCommand("grade", GradeSettings, work, __doc__.split("\n\n")[0], EXAMPLES)


def main(arguments: list[str]) -> int:
    """Run the job with these arguments; the exit status."""
    return execute(COMMAND, arguments)


if __name__ == "__main__":
    run(COMMAND)
