"""Accuracy of every selector on the bundled corpus, at five budgets, the same questions for all.

    python benchmarks/selectors.py           the table; writes benchmarks/results/selectors.json and the picture
    python benchmarks/selectors.py --model OTHER --json FILE --no-picture

Every image is encoded once. A selector ranks its tokens once; each budget is a prefix of that ranking. The language
model then answers from the kept features alone, greedily. Accuracy is exact match over the one-word questions;
captions are counted apart. Intervals: 95 % percentile bootstrap over images, 2,000 resamples, the same for every row.
"""

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPO)  # in place of this folder, whose selectors.py would hide a standard module

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

from jobs.console import quiet_libraries  # noqa: E402
from pipeline.answer.stage import answer_prompts  # noqa: E402
from pipeline.answer.transformers_engine import TransformersEngine  # noqa: E402
from pipeline.budget import Budget  # noqa: E402
from pipeline.corpus.decode import DecodeError, decode_image  # noqa: E402
from pipeline.families.base import EncodedImage, KeptImage  # noqa: E402
from pipeline.families.checkpoint import identity, open_checkpoint  # noqa: E402
from pipeline.prune.select import Selection, SelectSettings, select_tokens  # noqa: E402
from schemas.answers import AnswerRow  # noqa: E402
from schemas.stored import StoredPrompt, StoredSelection  # noqa: E402
from zoo_ops import SELECTORS  # noqa: E402

RATIOS = (0.5, 0.25, 0.125, 0.0625)
RANDOM_SEEDS = 5
PICTURE_SELECTORS = ("zoo", "feature_norm", "random")
PICTURE_RATIO = 0.125


def load_corpus(manifest: Path) -> tuple[dict[str, Image.Image], list[StoredPrompt]]:
    """Distinct images that decode, and the prompts with references about them."""
    images: dict[str, Image.Image] = {}
    prompts = []
    for line in manifest.read_text().splitlines():
        record = json.loads(line)
        data = (manifest.parent / record["image"]).read_bytes()
        image_id = hashlib.sha256(data).hexdigest()
        try:
            images.setdefault(image_id, decode_image(data))
        except DecodeError:
            continue
        for prompt in record["prompts"]:
            if prompt["prompt"].strip() and prompt["references"]:
                prompts.append(
                    StoredPrompt(
                        prompt_id=prompt["id"],
                        image_id=image_id,
                        prompt=prompt["prompt"],
                        references=prompt["references"],
                        type=prompt["type"],
                        shard=0,
                        image_shard=0,
                    )
                )
    return images, prompts


def rank(encoded: dict[str, EncodedImage], projector: Any, selector: str, seed: int) -> dict[str, Selection]:
    settings = SelectSettings(Budget("all"), selector=selector, seed=seed)
    ranked = {}
    for image_id, image in encoded.items():
        (ranked[image_id],) = select_tokens([image], [image_id], projector, settings, {})
    return ranked


def keep(image_id: str, image: EncodedImage, ranking: list[int]) -> KeptImage:
    indices = torch.tensor(sorted(ranking))
    rows, cols, tiles = image.grid
    selection = StoredSelection(
        image_id=image_id,
        num_tokens=len(image.features_ND),
        num_kept=len(ranking),
        num_structure=len(image.structure),
        grid={"rows": rows, "cols": cols, "tiles": tiles},
        segments=[vars(segment) for segment in image.segments],
        structure=list(image.structure),
        ranking=ranking,
    )
    return KeptImage(image_id, selection, indices, image.projected_NO[indices], {})


class Grader:
    """Correctness per image, and its bootstrap interval."""

    def __init__(self, image_ids: list[str]) -> None:
        self._place = {image_id: n for n, image_id in enumerate(image_ids)}
        self._resamples = np.random.default_rng(0).integers(0, len(image_ids), (2000, len(image_ids)))

    def grade(self, runs: list[list[AnswerRow]]) -> dict[str, Any]:
        """Accuracy in percent over one or several runs (seeds) of the same questions."""
        right = np.zeros(len(self._place))
        asked = np.zeros(len(self._place))
        types: dict[str, list[bool]] = {}
        for rows in runs:
            for row in rows:
                types.setdefault(str(row.type), []).append(bool(row.correct))
                if row.type != "caption":
                    right[self._place[row.image_id]] += bool(row.correct)
                    asked[self._place[row.image_id]] += 1
        resampled = right[self._resamples].sum(1) / asked[self._resamples].sum(1)
        low, high = np.percentile(100 * resampled, [2.5, 97.5])
        per_seed = [100 * float(np.mean([r.correct for r in rows if r.type != "caption"])) for rows in runs]
        return {
            "accuracy": round(100 * right.sum() / asked.sum(), 2),
            "interval": [round(float(low), 2), round(float(high), 2)],
            "per_seed": [round(value, 2) for value in per_seed],
            "per_type": {name: round(100 * float(np.mean(values)), 2) for name, values in sorted(types.items())},
            "questions": int(asked.sum() / len(runs)),
        }


def draw(images: dict[str, Image.Image], rankings: dict[str, dict[str, Selection]], path: Path) -> None:
    """Three scenes a row, the whole picture first, then what each selector keeps; what is dropped is darkened."""
    chosen = list(images)[:60:20]
    scale, margin, title = 2, 6, 16
    side = images[chosen[0]].width * scale
    columns = ["all tokens", *PICTURE_SELECTORS]
    sheet = Image.new(
        "RGB", (len(columns) * (side + margin) + margin, len(chosen) * (side + margin) + title + margin), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        pen.text((margin + column * (side + margin), 3), name, fill="black")
        for row, image_id in enumerate(chosen):
            picture = images[image_id].resize((side, side), Image.Resampling.NEAREST)
            if column:
                selection = rankings[name][image_id]
                number = len(selection.sensitivity_N)
                cells = round(number**0.5)
                mask = np.zeros(number, bool)
                mask[selection.ranking_K[: round(PICTURE_RATIO * number)].numpy()] = True
                full = np.kron(mask.reshape(cells, cells), np.ones((side // cells, side // cells), bool))[..., None]
                pixels = np.asarray(picture)
                picture = Image.fromarray(np.where(full, pixels, pixels // 5).astype(np.uint8))
            sheet.paste(picture, (margin + column * (side + margin), title + row * (side + margin)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=str(REPO / "examples" / "tiny-llava"))
    parser.add_argument("--manifest", default=str(REPO / "examples" / "scenes" / "scenes.jsonl"))
    parser.add_argument("--json", default=str(REPO / "benchmarks" / "results" / "selectors.json"))
    parser.add_argument("--picture", default=str(REPO / "docs" / "images" / "selectors.png"))
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--limit", type=int, help="first images only; for a quick look")
    given = parser.parse_args()
    quiet_libraries()
    started = time.perf_counter()
    checkpoint, family = open_checkpoint(given.model)
    images, prompts = load_corpus(Path(given.manifest))
    if given.limit:
        images = dict(list(images.items())[: given.limit])
        prompts = [p for p in prompts if p.image_id in images]
    preparer = family.preparer(checkpoint)
    encoder = family.encoder(checkpoint, torch.device("cpu"), torch.float32)
    answerer = family.answerer(checkpoint, torch.device("cpu"), torch.float32)
    engine = TransformersEngine(answerer, batch_size=64, batch_tokens=1 << 20)
    encoded = {}
    for image_id, image in images.items():
        (encoded[image_id],) = encoder.encode([preparer.prepare(image)], [(image.height, image.width)])
    grader = Grader(list(images))
    rows: list[dict[str, Any]] = []

    def answer(rankings: dict[str, list[int]]) -> list[AnswerRow]:
        kept = {image_id: keep(image_id, encoded[image_id], ranking) for image_id, ranking in rankings.items()}
        return answer_prompts(engine, prompts, kept, max_new_tokens=48)

    def measure(selector: str, ratio: float, of_seeds: list[dict[str, list[int]]]) -> None:
        runs, seconds = [], []
        for rankings in of_seeds:
            began = time.process_time()
            runs.append(answer(rankings))
            seconds.append(time.process_time() - began)
        row = {"selector": selector, "ratio": ratio, "seeds": len(runs), **grader.grade(runs)}
        rows.append({**row, "answer_cpu_seconds": round(median(seconds), 2)})
        print(f"{selector} {ratio:.2%}: {row['accuracy']:.2f}", file=sys.stderr, flush=True)

    everything = {image_id: list(range(len(image.features_ND))) for image_id, image in encoded.items()}
    measure("all tokens", 1.0, [everything])
    rankings: dict[str, dict[str, Selection]] = {}
    for selector in sorted(SELECTORS, key=lambda name: (name != "zoo", name)):
        seeds = range(RANDOM_SEEDS if selector == "random" else 1)
        ranked = [rank(encoded, encoder.projector, selector, seed) for seed in seeds]
        rankings[selector] = ranked[0]
        for ratio in RATIOS:
            budget = Budget("ratio", ratio)
            of_seeds = [{i: t.ranking_K[: budget.of(len(t.ranking_K))].tolist() for i, t in r.items()} for r in ranked]
            measure(selector, ratio, of_seeds)
    result = {
        "command": shlex.join(["python", "benchmarks/selectors.py", *sys.argv[1:]]),
        "images": len(images),
        "prompts": len(prompts),
        "model": identity(checkpoint, family),
        "environment": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "platform": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    Path(given.json).parent.mkdir(parents=True, exist_ok=True)
    Path(given.json).write_text(json.dumps(result, indent=1) + "\n")
    if not given.no_picture:
        draw(images, rankings, Path(given.picture))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a selector, one column a budget, accuracy with its interval."""
    lines = ["| selector | 50 % | 25 % | 12.5 % | 6.25 % |", "|---|---|---|---|---|"]
    first = rows[0]
    for selector in dict.fromkeys(row["selector"] for row in rows[1:]):
        cells = []
        for ratio in RATIOS:
            row = next(r for r in rows if r["selector"] == selector and r["ratio"] == ratio)
            spread = f" (seeds {min(row['per_seed']):.1f} to {max(row['per_seed']):.1f})" if row["seeds"] > 1 else ""
            cells.append(f"{row['accuracy']:.1f} [{row['interval'][0]:.1f}, {row['interval'][1]:.1f}]{spread}")
        lines.append(f"| {selector} | " + " | ".join(cells) + " |")
    head = (
        f"All tokens: {first['accuracy']:.1f} [{first['interval'][0]:.1f}, {first['interval'][1]:.1f}] % "
        f"of {first['questions']} one-word questions."
    )
    return "\n".join([head, "", *lines])


if __name__ == "__main__":
    main()
