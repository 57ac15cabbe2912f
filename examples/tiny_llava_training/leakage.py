"""Does the tower leak objects into background tokens? Asks about images of which only chosen kinds of tokens are kept.

    python leakage.py --model ../tiny-llava --output leakage.json
    python leakage.py --show leakage.json                            the table of README.md

Teacher-forced accuracy on plain held-out scenes, the same questions for every row. A tower whose background tokens
carry objects would answer from them. Two rows say what can be had without seeing anything: the commonest answer of each
type, and the commonest answer of training scenes to the very question ("how many digits are there ?"). Background may
itself show up to five pixels of an object, on its edge: the last two rows leave such tokens out.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluate import Answerer
from packing import teacher_forced_accuracy
from questions import ONE_WORD_TYPES, Question, sample_questions
from scenes import GRID, NUM_TOKENS, PATCH_SIZE_PX, Scene, make_scene, patch_labels
from train_language import QUESTION_LIMITS

NUM_KEPT = 32


def far_from_objects(on_object_NT: np.ndarray) -> np.ndarray:
    """Which tokens are no object's and have none among their eight neighbours."""
    grid = on_object_NT.reshape(-1, GRID, GRID)
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1)))
    around = np.zeros_like(grid)
    for row in range(3):
        for column in range(3):
            around |= padded[:, row : row + GRID, column : column + GRID]
    return ~around.reshape(on_object_NT.shape)


def shows_no_object(scene: Scene) -> np.ndarray:
    """Which tokens (256,) have no pixel of a thing in them: background may have a few, on a thing's edge."""
    tiles = (scene.owner < 0).reshape(GRID, PATCH_SIZE_PX, GRID, PATCH_SIZE_PX)
    return tiles.all((1, 3)).reshape(NUM_TOKENS)


def commonest_answers(asked: Sequence[Sequence[Question]]) -> dict[str, float]:
    """Share of the commonest answer of each type, for whoever knew that and saw nothing."""
    shares = {}
    for kind in ONE_WORD_TYPES:
        answers = Counter(question.answer for of_image in asked for question in of_image if question.type == kind)
        shares[kind] = answers.most_common(1)[0][1] / answers.total()
    return shares


def answers_by_question(asked: Sequence[Sequence[Question]]) -> dict[str, str]:
    """The commonest answer to each question, as it is worded."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in chain.from_iterable(asked):
        answers[question.prompt][question.answer] += 1
    return {prompt: of_prompt.most_common(1)[0][0] for prompt, of_prompt in answers.items()}


def right_unseen(asked: Sequence[Sequence[Question]], answers: Mapping[str, str]) -> dict[str, float]:
    """Share of each type that is right by these answers to the wording alone."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for question in chain.from_iterable(asked):
        hits[question.type].append(answers.get(question.prompt) == question.answer)
    return {kind: float(np.mean(hits[kind])) for kind in ONE_WORD_TYPES}


def questions_about(scenes: Sequence[Scene], rng: np.random.Generator) -> list[list[Question]]:
    """One-word questions about each scene, as the language model is trained on."""
    limits = {kind: QUESTION_LIMITS[kind] for kind in ONE_WORD_TYPES}
    return [sample_questions(scene.objects, rng, limits=limits) for scene in scenes]


def _row(name: str, by_type: dict[str, float]) -> dict[str, float | str]:
    row: dict[str, float | str] = {"tokens": name}
    row["mean"] = round(float(np.mean([by_type[kind] for kind in ONE_WORD_TYPES])), 3)
    return row | {kind: round(float(by_type[kind]), 3) for kind in ONE_WORD_TYPES}


@torch.no_grad()
def measure(model_dir: Path, num_scenes: int) -> list[dict[str, float | str]]:
    """One row a kind of tokens: accuracy of all questions (mean of the types) and by type."""
    answerer = Answerer(model_dir)
    scenes = [make_scene("heldout", index) for index in range(num_scenes)]
    on_object = np.stack([patch_labels(scene)[0][:, 0] > 0 for scene in scenes])
    _, visual = answerer.encode([Image.fromarray(scene.pixels()) for scene in scenes])
    rng = np.random.default_rng(3)
    asked = questions_about(scenes, rng)
    chance = rng.random(on_object.shape)
    clear = np.stack([shows_no_object(scene) for scene in scenes])
    order = {
        "all": (chance, NUM_TOKENS),
        "random": (chance, NUM_KEPT),
        "on objects": (chance + on_object, NUM_KEPT),
        "background": (chance - on_object, NUM_KEPT),
        "background without a pixel of an object": (chance + clear - on_object, NUM_KEPT),
        "background, not beside an object": (chance + far_from_objects(on_object) - on_object, NUM_KEPT),
    }
    taught = questions_about([make_scene("train", index) for index in range(num_scenes)], np.random.default_rng(4))
    rows = [
        _row("none, the commonest answer", commonest_answers(asked)),
        _row("none, the commonest answer to the question", right_unseen(asked, answers_by_question(taught))),
    ]
    print(*rows, sep="\n", flush=True)
    for name, (score, count) in order.items():
        kept = np.sort(np.argsort(-score, axis=1)[:, :count], axis=1)
        picked = visual.gather(1, torch.from_numpy(kept)[..., None].expand(-1, -1, visual.shape[-1]))
        row = _row(name, teacher_forced_accuracy(answerer.model, picked, asked))
        row |= {"kept": count, "share_on_objects": round(float(np.take_along_axis(on_object, kept, 1).mean()), 3)}
        rows.append(row)
        print(row, flush=True)
    return rows


def markdown(rows: Sequence[dict[str, float | str]]) -> str:
    """The table of README.md, in per cent."""
    kinds = ("mean", *ONE_WORD_TYPES)
    table = [(f"{NUM_KEPT} tokens (all: {NUM_TOKENS}), %", *kinds)]
    table += [(str(row["tokens"]), *(f"{100 * float(row[kind]):.1f}" for kind in kinds)) for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    lines.insert(1, "|---" * (len(kinds) + 1) + "|")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).resolve().parent.parent / "tiny-llava")
    parser.add_argument("--num-scenes", type=int, default=2000)
    parser.add_argument("--output", type=Path, help="write the rows here as JSON")
    parser.add_argument("--show", type=Path, help="measure nothing, print the table of earlier results")
    args = parser.parse_args()
    if args.show:
        print(markdown(json.loads(args.show.read_text())["rows"]))
        return
    rows = measure(args.model, args.num_scenes)
    if args.output:
        args.output.write_text(json.dumps({"num_scenes": args.num_scenes, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
