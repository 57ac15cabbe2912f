"""The whole story on the bundled corpus: prune it once, answer it at three budgets from the same artifact, look at it.

python examples/demo.py --output out
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
CORPUS = "examples/scenes/scenes-{000000..000002}.tar"
MODEL = "examples/tiny-llava"
BUDGETS = ("all", "64", "32")


def run(title: str, *arguments: str) -> float:
    """Run one job as a user would, showing the command; returns its wall-clock seconds."""
    print(f"\n== {title}\n$ python {shlex.join(arguments)}", flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=REPO, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", default="out", help="folder for the demo's artifacts (default: out)")
    output = Path(parser.parse_args().output).expanduser().absolute()
    scenes = str(output / "scenes")
    seconds = {}
    seconds["prune"] = run(
        "prune: every distinct image encoded once, its tokens ranked",
        "-m", "jobs.prune_corpus", "--corpus", CORPUS, "--model", MODEL, "--output", scenes,
        "--max-tokens", "all", "--shard-size", "64",
    )  # fmt: skip
    answers = []
    for budget in BUDGETS:
        answers += ["--answers", str(output / f"answers-{budget}")]
        seconds[f"answer, {budget} tokens"] = run(
            f"answer at {budget} tokens an image: the language model alone, from the same artifact",
            "-m", "jobs.answer_corpus", "--pruned", scenes, "--model", MODEL, "--tokens", budget,
            "--output", str(output / f"answers-{budget}"),
        )  # fmt: skip
    run(
        "look: what was selected, what failed, how accurate it is",
        "-m",
        "jobs.query_selections",
        "--pruned",
        scenes,
        *answers,
    )
    print("wall-clock seconds of each command, Ray's start included")
    for name, value in seconds.items():
        print(f"  {name:24} {value:6.1f}")
    print(f"\nThe output lies in {output}. Three commands to try next:")
    query = f"{sys.executable} -m jobs.query_selections --pruned {shlex.quote(scenes)}"
    first = "select row, col, count(*) as images from tokens where pick = 0 group by all order by images desc limit 5"
    wrong = (
        'select prompt, answer, a."references" from answers a join prompts using (prompt_id) where not correct limit 9'
    )
    print(f'  {query} \\\n      "{first}"')
    print(f"  {sys.executable} -m jobs.answer_corpus --pruned {shlex.quote(scenes)} --model {MODEL} --tokens 16 \\")
    print(f"      --output {shlex.quote(str(output / 'answers-16'))}")
    print(f"  {query} --answers {shlex.quote(str(output / 'answers-32'))} \\\n      '{wrong}'")


if __name__ == "__main__":
    main()
