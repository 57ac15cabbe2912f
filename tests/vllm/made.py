"""Made-up kept images and questions about them, the same in every process: what both engines are asked.

No vision tower takes part. Rows are random, rankings too, and places of newlines are those that the family's packing
would have.
"""

from dataclasses import dataclass

import torch

from pipeline.answer.engine import Question
from pipeline.families.base import KeptImage
from schemas.stored import StoredSelection

WIDTH = 64  # of the language models
KEPT = (1, 17, 64, None)  # tokens of an image; None: all
IMAGES, PROMPTS_AN_IMAGE = 12, 4
PROMPTS = ("what is this", "how many red w3 in the picture", "w9", "what colour <image> of w1 w2 w3", "w5 w6 w7 w8")


@dataclass(frozen=True)
class Form:
    """What images of a family bring beside their features."""

    newlines: bool = False
    levels: int = 0  # of deepstack


FORMS = {
    "llava": Form(),
    "llava_next": Form(newlines=True),
    "llava_onevision": Form(newlines=True),
    "internvl": Form(),
    "qwen2_vl": Form(),
    "qwen2_5_vl": Form(),
    "qwen3_vl": Form(levels=2),
}


def questions(family: str) -> list[Question]:
    """Questions about images of different size that keep different numbers of tokens, not sorted by any of it.

    Two images follow each other under one id: the same image at two budgets.
    """
    images = _images(FORMS[family])
    asked = [(image, prompt) for image in range(IMAGES) for prompt in range(PROMPTS_AN_IMAGE)]
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(1)).tolist()
    return [
        Question(PROMPTS[(image + prompt) % len(PROMPTS)], images[image], f"{image}-{prompt}")
        for image, prompt in (asked[place] for place in order)
    ]


def _images(form: Form) -> list[KeptImage]:
    draws = torch.Generator().manual_seed(5)
    images = []
    for number in range(IMAGES):
        if number % 2 == 0:
            rows, cols = 9 - number % 3, 12 + number % 5
            ranking = torch.randperm(rows * cols, generator=draws)
            names = ("features", *(f"deepstack.{level}" for level in range(form.levels)))
            stored = {name: torch.randn(rows * cols, WIDTH, generator=draws) for name in names}
        newlines = [(row + 1) * cols + row for row in range(rows)] if form.newlines else []
        selection = StoredSelection(
            image_id=f"{number // 2:064x}",
            num_tokens=rows * cols,
            num_kept=rows * cols,
            num_structure=len(newlines),
            grid={"rows": rows, "cols": cols, "tiles": 1},
            segments=[],
            structure=newlines,
            ranking=ranking.tolist(),
            gain=[1.0] * (rows * cols),
        )
        indices_K = ranking[: KEPT[number % len(KEPT)]].sort().values
        kept = {name: tensor[indices_K] for name, tensor in stored.items()}
        images.append(KeptImage(selection.image_id, selection, indices_K, kept.pop("features"), kept))
    return images
