"""Every selector against `zoo` on the bundled corpus: the same questions at six budgets, one or more models.

    python benchmarks/selectors.py                         the tables; writes benchmarks/results/selectors.json
    python benchmarks/selectors.py --controls --model examples/tiny-llava --model DIR     two models, pooled and apart
    python benchmarks/selectors.py --limit 12 --json out/selectors.json --no-picture      a quick look

Every image is encoded once and ranked once by every selector; each budget is a prefix of that ranking. The language
model answers from the kept features alone, through `generate`, greedily. One-word answers are right or wrong by exact
match, captions are worth the F1 of the objects they name. `--controls` adds average pooling of the projected features
over 2 x 2 and 4 x 4 squares of the token grid, where that leaves as many tokens as a budget; it merges tokens, so it
is no selector of zoo_ops.

First of all, with all tokens, every selector's answers must equal those of the untouched model, for one image in forty:
there, all selectors have the same tokens, so that is a check of the harness, not of them. Intervals: 95 %
percentile bootstrap over images with all their questions, 10,000 resamples, the same for all. A difference is called
better or worse where its interval excludes zero, without correction; a star says that it also stands beside all the
others of its table (Holm).
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
import multiprocessing
import os
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from PIL import Image

from benchmarks.comparison import (
    ALL_TOKENS,
    CAPTION,
    MARKS,
    ONE_WORD,
    POOLED,
    Comparison,
    Row,
    Scores,
    columnar,
    mean_of,
)
from benchmarks.graded_corpus import GradedPrompt, load_corpus, spread
from benchmarks.kept_answers import Answered, Part, answer_part, runs_of
from benchmarks.ops import environment
from benchmarks.selector_picture import MANIFESTS, draw
from jobs.console import quiet_libraries
from jobs.tables import print_table
from pipeline.families.checkpoint import identity, open_checkpoint

IMAGES_A_PART = 40


def main() -> None:
    given = arguments()
    quiet_libraries()
    names = [Path(model).name for model in given.model]
    if len(set(names)) < len(names) or POOLED in names:
        sys.exit(f"--model: models are told apart by the names of their folders, which are {', '.join(names)}")
    started = time.perf_counter()
    manifests = tuple(map(Path, given.manifest))
    images, prompts = load_corpus(manifests)
    images = spread(images, given.limit)
    prompts = [prompt for prompt in prompts if prompt.image_id in images]
    runs = runs_of(given.controls)
    answered, scores = answer_all(given, manifests, images, prompts)
    generated_in = time.perf_counter() - started
    (tokens,) = {tuple(part.tokens_B) for part in answered}
    (num_tokens,) = {max(part.cpu_sec) for part in answered}
    rows: list[Row] = []
    beaten: list[dict[str, Any]] = []
    compared = {POOLED: mean_of(list(scores.values()))} | (scores if len(scores) > 1 else {})
    for name, of_model in compared.items():
        comparison = Comparison(name, prompts, runs, tokens, num_tokens)
        rows += comparison.rows(of_model)
        beaten += comparison.beaten(of_model)
    result = {
        "command": shlex.join(["python", "benchmarks/selectors.py", *map(without_folder, sys.argv[1:])]),
        "environment": {**environment(torch.device("cpu")), "transformers": transformers.__version__},
        "models": {name: identity(*open_checkpoint(path)) for name, path in zip(names, given.model, strict=True)},
        "images": len(images),
        "questions": counts(prompts),
        "equality": f"{sum(part.checked for part in answered)} questions about {len(answered)} images with all tokens, "
        "ranked by each selector, are answered as by the untouched model",
        "seconds": round(time.perf_counter() - started, 1),
        "answers": costs(answered, generated_in, given.processes),
        "beaten": beaten,
        **columnar(rows),
    }
    write(Path(given.json), result)
    if not given.no_picture:
        draw(result, given.model[0], images, prompts, Path(given.picture))
    show(rows, result)


def without_folder(argument: str) -> str:
    """An argument as a result may name it: of a path on this machine the last part."""
    return Path(argument).name if os.path.isabs(argument) else argument


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", action="append", help="checkpoint; once for each (default: the bundled one)")
    parser.add_argument("--manifest", action="append", help="JSONL; once for each (default: the bundled corpus)")
    parser.add_argument("--controls", action="store_true", help="also average pooling at equal token counts")
    parser.add_argument("--json", default=str(REPO / "benchmarks" / "results" / "selectors.json"))
    parser.add_argument("--picture", default=str(REPO / "docs" / "images" / "selectors.png"))
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--limit", type=int, help="so many images, spread over the corpus; for a quick look")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="one compute thread each")
    given = parser.parse_args()
    given.model = given.model or [str(REPO / "examples" / "tiny-llava")]
    given.manifest = given.manifest or list(map(str, MANIFESTS))
    return given


def answer_all(
    given: argparse.Namespace,
    manifests: tuple[Path, ...],
    images: dict[str, Image.Image],
    prompts: Sequence[GradedPrompt],
) -> tuple[list[Answered], dict[str, Scores]]:
    """What every part of the images brought, and each model's scores of all questions."""
    ids = list(images)
    some = [ids[n : n + IMAGES_A_PART] for n in range(0, len(ids), IMAGES_A_PART)]
    parts = [Part(model, manifests, group, given.controls) for model in given.model for group in some]
    answered = []
    for number, one in enumerate(answers_of(parts, given.processes), 1):
        answered.append(one)
        print(f"{number} of {len(parts)} parts answered", file=sys.stderr, flush=True)
    image_ids = [prompt.image_id for prompt in prompts]
    scores = {}
    for model in given.model:
        mine = [(part, one) for part, one in zip(parts, answered, strict=True) if part.model == model]
        full_Q = np.full(len(prompts), np.nan)
        scores_RBQ = np.full((*mine[0][1].scores_RBQ.shape[:2], len(prompts)), np.nan)
        for part, one in mine:
            members = set(part.image_ids)
            numbers = [n for n, image_id in enumerate(image_ids) if image_id in members]
            full_Q[numbers], scores_RBQ[:, :, numbers] = one.full_Q, one.scores_RBQ
        assert not np.isnan(full_Q).any(), "every question is answered"
        scores[Path(model).name] = Scores(full_Q, scores_RBQ)
    return answered, scores


def answers_of(parts: Sequence[Part], processes: int) -> Iterator[Answered]:
    """What each part brings, in their order; worked on in processes of their own, or here where one is enough."""
    if min(processes, len(parts)) == 1:
        yield from map(answer_part, parts)
        return
    with multiprocessing.get_context("spawn").Pool(min(processes, len(parts))) as pool:
        yield from pool.imap(answer_part, parts)


def counts(prompts: Sequence[GradedPrompt]) -> dict[str, dict[str, int]]:
    """Number of questions by split and kind."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for prompt in prompts:
        found[prompt.split][prompt.kind] += 1
    return {split: dict(sorted(kinds.items())) for split, kinds in sorted(found.items())}


def costs(answered: Sequence[Answered], wall_sec: float, processes: int) -> dict[str, Any]:
    """How many answers were asked for and generated, how fast, and the processor time of one at every budget."""
    cpu_sec: Counter[int] = Counter()
    generated: Counter[int] = Counter()
    for one in answered:
        cpu_sec.update(one.cpu_sec)
        generated.update(one.generated)
    asked = sum(one.asked + len(one.full_Q) for one in answered)
    return {
        "asked": asked,
        "generated": generated.total(),  # a kept set that several selectors chose is answered once
        "processes": processes,
        "wall_sec": round(wall_sec, 1),
        "asked_per_sec": round(asked / wall_sec, 1),
        "cpu_ms_per_answer": {
            str(n): round(1000 * cpu_sec[n] / generated[n], 3) for n in sorted(cpu_sec, reverse=True)
        },
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """JSON with one row of a table a line."""
    lists = ("rows", "beaten")
    head = json.dumps({name: value for name, value in result.items() if name not in lists}, indent=1)[:-2]
    bodies = (f' "{name}": [\n' + ",\n".join(map(json.dumps, result[name])) + "\n ]" for name in lists)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(",\n".join([head, *bodies]) + "\n}\n")


def show(rows: Sequence[Row], result: dict[str, Any]) -> None:
    """The tables: differences to `zoo` by split and model, then every kind of question by split and budget, pooled."""
    print(f"{result['equality']}; {result['answers']['asked_per_sec']} answers a second\n")
    print("points to zoo [95 % interval]: + better, - worse, = equal; * stands beside all others of the table\n")
    by_table: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_table[row.model, row.split, row.kind].append(row)
    for (model, split, kind), members in by_table.items():
        if kind in (ONE_WORD, CAPTION):
            measure = "object F1" if kind == CAPTION else "exact match"
            full = members[0]
            title = f"{model}, {split}, {kind} ({full.questions} questions, {measure}; all tokens {full.percent:.1f} %)"
            print_table(grid(members[1:], lambda row: str(row.tokens), difference), title)
    budgets = list(dict.fromkeys((row.split, row.tokens) for row in rows if row.selector != ALL_TOKENS))
    for split, tokens in budgets:
        members = [row for row in rows if (row.model, row.split) == (POOLED, split)]
        members = [row for row in members if row.selector == ALL_TOKENS or row.tokens == tokens]
        print_table(grid(members, lambda row: row.kind, level), f"{split}, {tokens} tokens, %")


def grid(rows: Sequence[Row], column_of: Any, text_of: Any) -> pa.Table:
    """One line a selector."""
    columns = list(dict.fromkeys(map(column_of, rows)))
    cells = {(row.selector, column_of(row)): text_of(row) for row in rows}
    names = list(dict.fromkeys(row.selector for row in rows))
    table: dict[str, list[str | None]] = {"selector": list(names)}
    table |= {column: [cells.get((name, column)) for name in names] for column in columns}
    return pa.table(table)


def level(row: Row) -> str:
    """Per cent, and how that compares with `zoo`."""
    return f"{row.percent:.1f}{mark(row)}"


def difference(row: Row) -> str:
    """Per cent, then points to `zoo` with their interval."""
    if row.points is None:
        return f"{row.percent:.1f} [{row.low:.1f}, {row.high:.1f}]"
    return f"{row.percent:.1f}  {row.points:+.1f} [{row.points_low:+.1f}, {row.points_high:+.1f}]{mark(row)}"


def mark(row: Row) -> str:
    """Better, worse or equal as a sign, with a star where the difference stands beside all others."""
    return f" {MARKS[row.verdict]}{'*' * bool(row.holm)}" if row.verdict else ""


if __name__ == "__main__":
    main()
