"""Answer the prompts of a pruned corpus with the language model alone; no vision tower is loaded.

zoo-prune answer --pruned out/scenes --model examples/tiny-llava --tokens 32 --output out/answers
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()


from jobs.console import exit_status, run, say
from jobs.options import JobCommand, execute
from pipeline.answer.settings import AnswerSettings
from schemas.wording import counted

EXAMPLES = """examples:
  <program> --pruned out/scenes --model examples/tiny-llava --tokens 32 \\
      --output out/answers
  <program> --pruned out/scenes --model examples/tiny-llava --tokens all \\
      --output out/answers-all
  <program> --pruned out/scenes --model examples/tiny-llava --tokens 32 \\
      --prompts examples/asking/questions.jsonl --output out/asked
  <program> --pruned out/scenes --model examples/tiny-llava --tokens 32 \\
      --where "type = 'count' and num_kept = 64" --output out/counts

The same pruned corpus serves every budget up to the one it was pruned with.
A line of --prompts: {"source": "000000.jpg", "prompt": "what is this ?"}
Run the same command again to resume; committed shards are skipped.
"""


def work(settings: AnswerSettings) -> int:
    """Answer, print the accuracy where there are references; the exit status."""
    from jobs.tables import print_table  # here, so that --help need not wait for torch, Ray and Arrow
    from pipeline.answer.job import answer_corpus
    from pipeline.report.query import connect
    from pipeline.report.summary import accuracy

    result = answer_corpus(settings, say)
    if result.shards_done:
        refused = f", {result.refused:,} of them refused" if result.refused else ""
        say(f"answered {counted(result.prompts, 'prompts')} in {counted(result.shards_done, 'shards')}{refused}")
    if not (result.failures or result.stopped_by):
        say(f"the answers lie in {settings.output}")
    table = accuracy(connect(settings.pruned, [settings.output]))
    if len(table):
        print_table(table, title="accuracy, %")
    nothing = result.prompts and result.refused == result.prompts
    told = "error: every prompt was refused; the column `message` of the answers says why" if nothing else None
    return exit_status(result.failures, result.stopped_by, all_failed=told)


COMMAND = JobCommand("answer", AnswerSettings, work, __doc__.split("\n\n")[0], EXAMPLES)


def main(arguments: list[str]) -> int:
    """Run the job with these arguments; the exit status."""
    return execute(COMMAND, arguments)


if __name__ == "__main__":
    run(COMMAND)
