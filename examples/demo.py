"""The whole story on the bundled corpus: prune it once, answer it at three budgets from the same artifact, look at it.

python examples/demo.py --output out
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

import argparse
import os
import shlex
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path

from jobs.console import quiet_libraries
from jobs.options import EXIT_BAD_INPUT, execute
from jobs.zoo_prune import COMMAND
from pipeline.errors import UserError

REPO = Path(__file__).resolve().parents[1]
CORPUS = ("--corpus", "examples/scenes/scenes-{000000..000002}.tar", "--corpus", "examples/scenes/cluttered-000000.tar")
MODEL = "examples/tiny-llava"
METRICS = ("--metric", "caption=object_f1", "--metric", "cluttered_caption=object_f1")
BUDGETS = ("all", "64", "32")
FIRST = "select row, col, count(*) as images from tokens where pick = 0 group by all order by images desc limit 5"
WRONG = 'select prompt, answer, a."references" from answers a join prompts using (prompt_id) where not correct limit 9'


def shown(*arguments: str) -> str:
    """A command as a user would type it, each option with its value on a line of its own."""
    lines = [f"zoo-prune {arguments[0]}"]
    for before, argument in pairwise(arguments):
        if before.startswith("--"):
            lines[-1] += f" {shlex.quote(argument)}"
        else:
            lines.append(f"    {shlex.quote(argument)}")
    return " \\\n".join(lines)


def run(title: str, *arguments: str) -> float:
    """Run one command as a user would, showing it; returns its wall-clock seconds."""
    print(f"\n== {title}\n$ {shown(*arguments)}", flush=True)
    started = time.perf_counter()
    try:
        status = execute(COMMAND, list(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_BAD_INPUT
    if status:
        sys.exit(status)  # the job said why
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", default="out", help="folder for the demo's artifacts (default: out)")
    output = Path(parser.parse_args().output).expanduser().absolute()
    os.chdir(REPO)  # what the commands name lies here
    quiet_libraries()
    print("starting Ray, once for all commands", flush=True)
    started = time.perf_counter()
    from pipeline.cluster.session import ray_session  # takes seconds to import

    with ray_session(os.environ.get("RAY_ADDRESS") or None):
        show(output, {"libraries and Ray": time.perf_counter() - started})


def show(output: Path, seconds: dict[str, float]) -> None:
    """The story, in a running Ray; `seconds` is what starting it took."""
    scenes, model = str(output / "scenes"), ("--model", MODEL)
    seconds["prune"] = run(
        "prune: every distinct image encoded once, its tokens ranked",
        "prune", *CORPUS, *model, "--output", scenes, "--max-tokens", "all", "--shard-size", "64",
    )  # fmt: skip
    answers = {budget: str(output / f"answers-{budget}") for budget in BUDGETS}
    for budget, folder in answers.items():
        seconds[f"answer, {budget} tokens"] = run(
            f"answer at {budget} tokens an image: the language model alone, from the same artifact",
            "answer", "--pruned", scenes, *model, "--tokens", budget, *METRICS, "--output", folder,
        )  # fmt: skip
    options = [part for folder in answers.values() for part in ("--answers", folder)]
    run("look: what was selected, what failed, how accurate it is", "query", "--pruned", scenes, *options)
    report = str(output / "report.html")
    run("all of it in one HTML file, with a gallery", "report", "--pruned", scenes, *options, "--output", report)

    print("Captions are scored by object F1: which objects they name, in whatever order. In cluttered scenes much that")
    print("is salient is asked about by nobody, and numbers stand in small print.\n")
    print("wall-clock seconds")
    for name, value in seconds.items():
        print(f"  {name:24} {value:6.1f}")
    print(f"\nThe output lies in {output}. Three commands to try next, in {REPO}:\n")
    if shutil.which("zoo-prune") is None:
        print(f"source {shlex.quote(str(Path(sys.executable).parent / 'activate'))}")
    for command in (
        ("query", "--pruned", scenes, FIRST),
        ("answer", "--pruned", scenes, *model, "--tokens", "16", *METRICS, "--output", str(output / "answers-16")),
        ("query", "--pruned", scenes, "--answers", answers["32"], WRONG),
    ):
        print(f"{shown(*command)}\n")


if __name__ == "__main__":
    main()
