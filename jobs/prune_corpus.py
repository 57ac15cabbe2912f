"""Prune a corpus: encode every distinct image once, rank its visual tokens, store the ranking and the kept features.

zoo-prune prune --corpus "shards/{000000..000099}.tar" --model llava-hf/llava-1.5-7b-hf --output out
ray job submit --working-dir . -- python jobs/prune_corpus.py --corpus "/data/*.tar" --model ... --output /data/out
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

from jobs.console import exit_status, run, say
from jobs.options import JobCommand, command_of, execute
from pipeline.prune.settings import PruneSettings
from schemas.wording import counted

EXAMPLES = """examples:
  <program> --corpus "examples/scenes/scenes-{000000..000002}.tar" \\
      --model examples/tiny-llava --output out/scenes --max-tokens 64
  <program> --corpus photos.jsonl --model llava-hf/llava-1.5-7b-hf --output out/photos \\
      --max-tokens 0.25 --feature-dtype int8 --features both
  RAY_AUTH_MODE=token ray job submit --working-dir . -- \\
      python jobs/prune_corpus.py --corpus "/data/*.tar" --model llava-hf/llava-1.5-7b-hf \\
      --output /data/pruned

Add --plan to learn first what the job would write and take.
Run the same command again to resume; committed shards are skipped. To enlarge a corpus, name the new files too.
"""


def work(settings: PruneSettings) -> int:
    """Prune, say what was done; the exit status."""
    if settings.plan:
        return tell_plan(settings)
    from pipeline.prune.job import prune_corpus  # here, so that --help need not wait for torch and Ray

    result = prune_corpus(settings, say)
    if result.shards_done:
        images, shards = counted(result.images, "images"), counted(result.shards_done, "shards")
        say(f"pruned {images} in {shards}, {counted(result.errors, 'errors')}")
    if result.shards_done and not (result.failures or result.left_out or result.stopped_by):
        say(f"the output lies in {settings.output}")
    told_already = result.usable or result.failures or result.left_out
    nothing = None if told_already else "error: not one input could be used; the errors table says why of each"
    return exit_status(result.failures, result.stopped_by, len(result.left_out), all_failed=nothing)


def tell_plan(settings: PruneSettings) -> int:
    """Say what the job would be; the exit status."""
    from jobs.plan_text import lines_of  # as above
    from pipeline.prune.forecast import forecast

    print("\n".join(lines_of(settings, forecast(settings), command_of("zoo-prune prune", settings))))
    return 0


COMMAND = JobCommand("prune", PruneSettings, work, __doc__.split("\n\n")[0], EXAMPLES)


def main(arguments: list[str]) -> int:
    """Run the job with these arguments; the exit status."""
    return execute(COMMAND, arguments)


if __name__ == "__main__":
    run(COMMAND)
