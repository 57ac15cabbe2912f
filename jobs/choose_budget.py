"""Choose a token budget for a corpus: measure on a sample what pruning costs in answers, and say which budget is safe.

zoo-prune choose --corpus photos.jsonl --model llava-hf/llava-1.5-7b-hf --sample 500 --tolerance 2.0 --output out/choice
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

from typing import TYPE_CHECKING

from jobs.console import exit_status, run, say
from jobs.options import JobCommand, execute
from pipeline.choosing.settings import ChooseSettings
from schemas.wording import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from schemas.choice import Choice

EXAMPLES = """examples:
  <program> --corpus "examples/scenes/scenes-{000000..000002}.tar" \\
      --model examples/tiny-llava --sample 100 --output out/choice
  <program> --corpus photos.jsonl --model llava-hf/llava-1.5-7b-hf \\
      --sample 500 --tolerance 1.0 --tokens 192 --tokens 128 --tokens 64 --output out/choice

The sample is encoded once, with all tokens. Run the same command again to resume; another --tolerance costs nothing.
"""


def work(settings: ChooseSettings) -> int:
    """Measure, print the table and what it says; the exit status."""
    from jobs.tables import print_table  # here, so that --help need not wait for torch, Ray and Arrow
    from pipeline.choosing.job import CHOICE, choose_budget

    result = choose_budget(settings, say)
    if result.choice is not None:
        score = f"{result.choice.all_tokens:.2f} with all tokens"
        sample = result.choice.sample
        measured = f"{counted(sample.prompts, 'prompts')} about {counted(sample.images, 'images')}"
        print_table(table_of(result.choice), f"points lost: {measured}, {score}")
        for sentence in result.choice.findings:
            print(sentence)
        say(f"the numbers lie in {settings.output}/{CHOICE}")
    return exit_status(result.failures, result.stopped_by, len(result.left_out))


def table_of(choice: "Choice") -> "pa.Table":
    """A row for each budget."""
    import pyarrow as pa

    rows = []
    for one in choice.budgets:
        row = {
            "budget": one.tokens,
            "tokens": round(one.mean_tokens, 1),
            "score": round(one.score, 2),
            "loss": round(one.loss.points, 2),
            "95 %": f"[{one.loss.low:.2f}, {one.loss.high:.2f}]",
            "at most": round(one.bound, 2),
            "verdict": one.verdict,
        }
        row |= {f"loss of {control.selector}": round(control.loss.points, 2) for control in one.controls}
        worst = one.groups[0]
        rows.append(row | {"suffers most": f"{worst.type or '-'} {worst.loss.points:.2f}"})
    return pa.Table.from_pylist(rows)


COMMAND = JobCommand("choose", ChooseSettings, work, __doc__.split("\n\n")[0], EXAMPLES)


def main(arguments: list[str]) -> int:
    """Run the job with these arguments; the exit status."""
    return execute(COMMAND, arguments)


if __name__ == "__main__":
    run(COMMAND)
