"""Prune exported tasks, answer them and grade the answers, by zoo-prune's own commands, which it shows.

python examples/lmms_eval/answer.py --corpus out/pope --model llava-hf/llava-1.5-7b-hf --tokens 64 \\
    --metric pope --output out/pope-run

Run it again with other --tokens: the corpus is pruned once, to --max-tokens.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from exchange import EXIT_REFUSED, MANIFEST, Refusal, read_corpus


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument(
        "--corpus",
        required=True,
        type=Path,
        action="append",
        metavar="FOLDER",
        help="the output of export.py; repeatable",
    )
    options.add_argument("--model", required=True, metavar="PATH|ID", help="the checkpoint")
    options.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="what is pruned, answered, graded"
    )
    options.add_argument("--tokens", default="64", help="visual tokens of an image when answering (default: 64)")
    options.add_argument(
        "--max-tokens", default="all", help="kept when pruning, the most that --tokens can ask for (default: all)"
    )
    options.add_argument("--max-new-tokens", help="longest answer (default: the task's max_new_tokens)")
    options.add_argument(
        "--metric", action="append", default=[], metavar="[TYPE=]NAME", help="of zoo-prune grade; a task is a type"
    )
    return options


def commands(told: argparse.Namespace) -> list[list[str]]:
    """What is run, one after the other."""
    tasks = [read_corpus(corpus).task for corpus in told.corpus]
    longest = told.max_new_tokens or max(
        (task["generation_kwargs"].get("max_new_tokens") or 0 for task in tasks), default=0
    )
    budget = re.sub(r"[^\w.]", "-", told.tokens)
    pruned, answers, grades = (str(told.output / name) for name in ("pruned", f"answers-{budget}", f"grades-{budget}"))
    corpora = [part for corpus in told.corpus for part in ("--corpus", str(corpus / MANIFEST))]
    new_tokens = ["--max-new-tokens", str(longest)] if longest else []
    metrics = [part for metric in told.metric for part in ("--metric", metric)]
    return [
        ["prune", *corpora, "--model", told.model, "--max-tokens", told.max_tokens, "--output", pruned],
        [
            "answer",
            "--pruned",
            pruned,
            "--model",
            told.model,
            "--tokens",
            told.tokens,
            *new_tokens,
            "--output",
            answers,
        ],
        ["grade", "--answers", answers, *metrics, "--output", grades],
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; the exit status of the first that fails, else 0."""
    for command in commands(parser().parse_args(arguments)):
        print(f"$ {shlex.join(['zoo-prune', *command])}", flush=True)
        status = subprocess.run([sys.executable, "-m", "jobs.zoo_prune", *command], check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
