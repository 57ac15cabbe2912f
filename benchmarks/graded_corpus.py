"""Images and questions of a manifest, the group that each question belongs to, and how its answer is graded."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.corpus.decode import DecodeError, decode_image
from pipeline.grading.metrics.exact import score as exact
from pipeline.grading.metrics.object_f1 import score as object_f1

PLAIN, CLUTTERED = "plain", "cluttered"
_CLUTTERED = re.compile(rf"{CLUTTERED}[\W_]*(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class GradedPrompt:
    """A question with its references."""

    image_id: str
    text: str
    references: Sequence[str]
    split: str  # PLAIN or CLUTTERED
    kind: str  # what is asked: "color", "caption", ...

    @property
    def is_caption(self) -> bool:
        """Whether its answer is long, and graded by the objects it names."""
        return self.kind == "caption"

    def score(self, answer: str) -> float:
        """0 to 1: the object F1 of a caption with the reference it fits best, exact match of all others."""
        return (object_f1 if self.is_caption else exact)(answer, self.references)


def split_and_kind(prompt_type: str | None) -> tuple[str, str]:
    """(PLAIN, "color") of "color", (CLUTTERED, "color") of "cluttered_color"; what has no type is "untyped"."""
    match = _CLUTTERED.fullmatch(prompt_type or "")
    split, kind = (CLUTTERED, match[1]) if match else (PLAIN, prompt_type)
    return split, kind or "untyped"


def load_corpus(manifests: Sequence[Path]) -> tuple[dict[str, Image.Image], list[GradedPrompt]]:
    """Distinct images that decode and have a question with references, and these questions."""
    images: dict[str, Image.Image] = {}
    prompts = []
    lines = ((manifest, line) for manifest in manifests for line in manifest.read_text().splitlines())
    for manifest, line in lines:
        record = json.loads(line)
        data = (manifest.parent / record["image"]).read_bytes()
        image_id = hashlib.sha256(data).hexdigest()
        asked = [p for p in record.get("prompts") or () if p["prompt"].strip() and p.get("references")]
        if not asked:
            continue
        try:
            images.setdefault(image_id, decode_image(data))
        except DecodeError:
            continue
        for prompt in asked:
            split, kind = split_and_kind(prompt.get("type"))
            prompts.append(GradedPrompt(image_id, prompt["prompt"], tuple(prompt["references"]), split, kind))
    return images, prompts


def spread(images: dict[str, Image.Image], limit: int | None) -> dict[str, Image.Image]:
    """At most `limit` images, evenly spread over the manifest so that every split is among them."""
    if limit is None or limit >= len(images):
        return images
    names = list(images)
    return {names[n * len(names) // limit]: images[names[n * len(names) // limit]] for n in range(limit)}
