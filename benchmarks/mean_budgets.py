"""Corpus-mean budgets against equal ones on the bundled corpus: the same questions, the same tokens in all.

    python benchmarks/mean_budgets.py                      the tables; writes benchmarks/results/mean_budgets.json
    python benchmarks/mean_budgets.py --limit 12 --json out/mean.json      a quick look

Every image is encoded once and ranked once by each selector. An equal budget keeps k tokens of every image; a mean of k
keeps those whose gain is at least one threshold for all images, which is the least that keeps k of an image on average
(`zoo-prune answer --tokens mean:K`). Intervals: 95 % percentile bootstrap of the paired difference over images with all
their questions, 10,000 resamples, without correction for their number.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(REPO)

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers

from benchmarks.comparison import BOTH, CAPTION, MARKS, ONE_WORD, groups
from benchmarks.graded_corpus import GradedPrompt, load_corpus, spread
from benchmarks.kept_answers import Model
from benchmarks.ops import environment
from benchmarks.paired import estimate, per_image, verdict
from benchmarks.selectors import MANIFESTS
from jobs.console import quiet_libraries
from jobs.tables import print_table
from pipeline.budget import Budget, GainBudget
from pipeline.families.checkpoint import identity, open_checkpoint
from zoo_ops import Ranking, budget_by_mean

RATIOS = (0.125, 0.0625)
SELECTORS = ("zoo", "divprune_centered", "feature_norm")


def main() -> None:
    given = arguments()
    quiet_libraries()
    torch.set_num_threads(1)
    started = time.perf_counter()
    images, prompts = load_corpus([REPO / "examples" / "scenes" / name for name in MANIFESTS])
    images = spread(images, given.limit)
    prompts = [prompt for prompt in prompts if prompt.image_id in images]
    model = Model(given.model, images, prompts)
    rows = [row for selector in given.selector for row in rows_of(model, prompts, selector, given.min_tokens)]
    result = {
        "command": shlex.join(["python", "benchmarks/mean_budgets.py", *sys.argv[1:]]),
        "environment": {**environment(torch.device("cpu")), "transformers": transformers.__version__},
        "model": identity(*open_checkpoint(given.model)),
        "images": len(images),
        "questions": len(prompts),
        "min_tokens": given.min_tokens,
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    path = Path(given.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    show(rows)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=str(REPO / "examples" / "tiny-llava"))
    parser.add_argument("--selector", action="append", help=f"once for each (default: {', '.join(SELECTORS)})")
    parser.add_argument("--min-tokens", type=int, default=4, help="of an image, at a mean")
    parser.add_argument("--json", default=str(REPO / "benchmarks" / "results" / "mean_budgets.json"))
    parser.add_argument("--limit", type=int, help="so many images, spread over the corpus; for a quick look")
    given = parser.parse_args()
    given.selector = given.selector or list(SELECTORS)
    return given


def rows_of(model: Model, prompts: Sequence[GradedPrompt], selector: str, min_tokens: int) -> list[dict[str, Any]]:
    """One selector's rows: of each ratio, split and kind, what both ways of spending the same tokens are worth."""
    ranked = model.rank(selector, 0)
    image_ids = list(ranked)
    num_tokens = {len(one.ranking_K) for one in ranked.values()}
    (most,) = num_tokens
    ranking = Ranking(
        torch.stack([ranked[image_id].ranking_K for image_id in image_ids]),
        torch.stack([ranked[image_id].gain_K for image_id in image_ids]),
    )
    rows = []
    for ratio in RATIOS:
        k = Budget("ratio", ratio).of(most)
        found = budget_by_mean(ranking, k, min_tokens=min_tokens, max_tokens=most)
        budget = GainBudget(found.gain_threshold, min_tokens)
        mean_k = {image_id: budget.kept(most, ranked[image_id].gain_K.tolist()) for image_id in image_ids}
        assert list(mean_k.values()) == found.budgets_B.tolist(), "jobs and operations spend alike"
        equal_Q = scores(model, prompts, {image_id: ranked[image_id].ranking_K[:k].tolist() for image_id in image_ids})
        mean_Q = scores(model, prompts, {name: ranked[name].ranking_K[: mean_k[name]].tolist() for name in image_ids})
        place = {image_id: number for number, image_id in enumerate(image_ids)}
        image_Q = np.array([place[prompt.image_id] for prompt in prompts])
        for split, kind, numbers in groups(prompts):
            both = np.stack([equal_Q, mean_Q, mean_Q - equal_Q])[:, numbers]
            values = estimate(*per_image(both, image_Q[numbers], len(image_ids)))
            kept = [mean_k[image_id] for image_id in {prompts[number].image_id for number in numbers}]
            low, high = float(values.low_C[2]), float(values.high_C[2])
            rows.append(
                {
                    "selector": selector, "tokens": k, "split": split, "kind": kind, "questions": len(numbers),
                    "threshold": found.gain_threshold, "mean_tokens": round(float(np.mean(kept)), 2),
                    "fewest": min(kept), "most": max(kept), "equal": points(values.value_C[0]),
                    "mean": points(values.value_C[1]), "points": points(values.value_C[2]), "low": points(low),
                    "high": points(high), "verdict": verdict(low, high),
                }
            )  # fmt: skip
    return rows


def points(share: float) -> float:
    """Per cent."""
    return round(100 * float(share), 2)


def scores(model: Model, prompts: Sequence[GradedPrompt], kept: dict[str, list[int]]) -> np.ndarray:
    """The score of every question, each image with its own tokens."""
    found = np.full(len(prompts), np.nan)
    replies = model.answer([(image_id, model.kept(image_id, tokens)) for image_id, tokens in kept.items()])
    for of_image in replies:
        for number, reply in of_image.items():
            found[number] = prompts[number].score(str(reply.text))
    assert not np.isnan(found).any(), "every question is answered"
    return found


def lines_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of the table in docs/choosing.md: all kinds of one-word questions, and captions, by split."""
    return [
        f"| {row['selector']} | {row['tokens']} | {row['split']}, {row['kind']} | {row['mean_tokens']:.1f} "
        f"({row['fewest']} to {row['most']}) | {row['equal']:.1f} % | {row['mean']:.1f} % | "
        f"{row['points']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}] {MARKS[row['verdict']]} |"
        for row in rows
        if row["kind"] == ONE_WORD or (row["kind"] == CAPTION and row["split"] == BOTH)
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table for all one-word questions and for captions."""
    for kind in (ONE_WORD, CAPTION):
        table = [
            {
                "selector": row["selector"],
                "mean": row["tokens"],
                "split": row["split"],
                "tokens there": f"{row['mean_tokens']:.1f} ({row['fewest']} to {row['most']})",
                "equal, %": row["equal"],
                "mean, %": row["mean"],
                "points": f"{row['points']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}] {MARKS[row['verdict']]}",
            }
            for row in rows
            if row["kind"] == kind
        ]
        print_table(pa.Table.from_pylist(table), f"{kind}: one threshold for all against as many tokens of each")


if __name__ == "__main__":
    main()
