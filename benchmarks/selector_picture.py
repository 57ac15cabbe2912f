"""Draw what each selector keeps of some scenes of both splits, and how much it answers right with as many tokens.

    python benchmarks/selector_picture.py      docs/images/selectors.png, by benchmarks/results/selectors.json

The per cent are those of that file: one-word questions of a split, all models pooled. The kept tokens are the bundled
model's. Dropped ones are grey. `benchmarks/selectors.py` draws the same at its end.
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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.comparison import ALL_TOKENS, ONE_WORD, POOLED, rows_of
from benchmarks.graded_corpus import GradedPrompt, load_corpus
from benchmarks.kept_answers import Model
from pipeline.budget import Budget

MANIFESTS = tuple(REPO / "examples" / "scenes" / name for name in ("scenes.jsonl", "cluttered.jsonl"))
SELECTORS = ("zoo", "divprune", "divprune_centered", "feature_norm", "random")
RATIO = 0.125
SCENES_A_SPLIT, STEP = 2, 20  # the first of a split, and the one that many images later
SCALE, MARGIN, LINE_PX, FONT_PX = 2, 10, 46, 28
# Its own ground, so that the words stand out on light pages and on dark ones.
GROUND, WORDS = (28, 33, 40), (230, 237, 243)

Pixels = NDArray[np.uint8]


def scenes_of(images: Mapping[str, Image.Image], prompts: Sequence[GradedPrompt]) -> dict[str, dict[str, Image.Image]]:
    """Some images of every split that has questions, by their ids."""
    ids: dict[str, dict[str, None]] = {}
    for prompt in prompts:
        ids.setdefault(prompt.split, {})[prompt.image_id] = None
    some = {split: list(of_split)[: SCENES_A_SPLIT * STEP : STEP] for split, of_split in ids.items()}
    return {split: {image_id: images[image_id] for image_id in chosen} for split, chosen in some.items()}


def with_dropped_grey(picture: Image.Image, kept_RC: NDArray[np.bool_]) -> Image.Image:
    """The picture, dark and without colour where the token grid's cell is not kept."""
    pixels: Pixels = np.asarray(picture.convert("RGB"))
    rows, cols = kept_RC.shape
    shown = np.kron(kept_RC, np.ones((pixels.shape[0] // rows, pixels.shape[1] // cols), bool))
    grey = 20 + np.asarray(picture.convert("L"), np.float32) * 0.28
    return Image.fromarray(np.where(shown[..., None], pixels, grey[..., None]).astype(np.uint8))


def right(result: Mapping[str, Any], num_kept: int) -> dict[tuple[str, str], float]:
    """Per cent of one-word questions answered right by split and selector: with that many tokens, or with all."""
    rows = [row for row in rows_of(result) if (row.model, row.kind) == (POOLED, ONE_WORD)]
    return {
        (row.split, row.selector): row.percent for row in rows if row.tokens == num_kept or row.selector == ALL_TOKENS
    }


def draw(
    result: Mapping[str, Any],
    model: str,
    images: Mapping[str, Image.Image],
    prompts: Sequence[GradedPrompt],
    path: Path,
) -> None:
    """One column a selector behind the whole pictures, the splits below one another, a scene a row."""
    scenes = scenes_of(images, prompts)
    encoded = Model(model, {name: image for some in scenes.values() for name, image in some.items()}, [])
    rankings = {selector: encoded.rank(selector, 0) for selector in SELECTORS}
    rows, cols, _ = next(iter(encoded.encoded.values())).grid
    num_kept = Budget("ratio", RATIO).of(rows * cols)
    percent = right(result, num_kept)
    side = next(iter(images.values())).width * SCALE
    lefts = [MARGIN + column * (side + MARGIN) for column in range(1 + len(SELECTORS))]
    height = LINE_PX + sum(LINE_PX + len(some) * (side + MARGIN) for some in scenes.values()) + MARGIN
    sheet = Image.new("RGB", (lefts[-1] + side + MARGIN, height), GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)

    def write(words: Sequence[str], top: int) -> None:
        for left, text in zip(lefts, words, strict=True):
            pen.text((left + side / 2, top + LINE_PX / 2), text, fill=WORDS, font=font, anchor="mm")

    write([f"all {rows * cols} tokens", *SELECTORS], MARGIN // 2)
    top = LINE_PX
    for split, some in scenes.items():
        shares = [f"{percent[split, name]:.1f} %" for name in (ALL_TOKENS, *SELECTORS)]
        write([f"{split}: {shares[0]}", *shares[1:]], top)
        top += LINE_PX
        for image_id, image in some.items():
            picture = image.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (lefts[0], top))
            for left, selector in zip(lefts[1:], SELECTORS, strict=True):
                kept = np.zeros(rows * cols, bool)
                kept[rankings[selector][image_id].ranking_K[:num_kept].numpy()] = True
                sheet.paste(with_dropped_grey(picture, kept.reshape(rows, cols)), (left, top))
            top += side + MARGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=str(REPO / "examples" / "tiny-llava"))
    parser.add_argument("--json", type=Path, default=REPO / "benchmarks" / "results" / "selectors.json")
    parser.add_argument("--picture", type=Path, default=REPO / "docs" / "images" / "selectors.png")
    given = parser.parse_args()
    draw(json.loads(given.json.read_text()), given.model, *load_corpus(MANIFESTS), given.picture)


if __name__ == "__main__":
    main()
