"""One tiny model a family, built once; images of ragged sizes, pruned by the pipeline's own stages without Ray."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Question, Reply
from pipeline.answer.transformers_engine import TransformersEngine
from pipeline.budget import Budget
from pipeline.families.base import Answerer, EncodedImage, Encoder, KeptImage
from pipeline.families.checkpoint import open_checkpoint
from pipeline.loader.shard import kept_image
from pipeline.prune.encode import decision_of, feature_row, kept_rows
from pipeline.prune.rows import DecodedRow
from pipeline.prune.select import SelectSettings, select_tokens
from schemas.columns import schema_of, table_of
from schemas.selections import SelectionRow
from schemas.stored import StoredSelection
from tests.families.models import MORE, TINY, Tiny, build

SIZES = [(64, 48), (90, 30), (33, 100), (56, 56), (121, 70)]  # width, height
ALL = Budget("all")


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Coloured shapes on noise."""
    draws = np.random.default_rng(seed)
    noise = draws.integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for _ in range(5):
        x, y = int(draws.integers(size[0])), int(draws.integers(size[1]))
        box = (x, y, x + int(draws.integers(6, 30)), y + int(draws.integers(6, 30)))
        ImageDraw.Draw(image).rectangle(box, fill=tuple(int(v) for v in draws.integers(0, 255, 3)))
    return image


@dataclass(eq=False)
class Case:
    """A family's tiny checkpoint, its stock model, and what the pipeline makes of the images."""

    tiny: Tiny
    folder: Path
    stock: Any
    images: list[Image.Image]

    @cached_property
    def opened(self) -> Any:
        return open_checkpoint(str(self.folder))

    @cached_property
    def encoder(self) -> Encoder:
        checkpoint, family = self.opened
        return family.encoder(checkpoint, torch.device("cpu"), torch.float32)

    @cache  # noqa: B019
    def answerer(self, positions: str | None = None) -> Answerer:
        checkpoint, family = self.opened
        return family.answerer(checkpoint, torch.device("cpu"), torch.float32, positions)

    @cached_property
    def pixels(self) -> list[np.ndarray]:
        checkpoint, family = self.opened
        preparer = family.preparer(checkpoint)
        return [preparer.prepare(image) for image in self.images]

    @cached_property
    def encoded(self) -> list[EncodedImage]:
        sizes = [(image.height, image.width) for image in self.images]
        return self.encoder.encode(self.encoder.pack(self.pixels, sizes))

    @cache  # noqa: B019
    def rows(self, selector: str | None = None) -> list[dict[str, Any]]:
        """Selections rows with the features' payload, every token ranked."""
        ids = [f"{number:064x}" for number in range(len(self.images))]
        settings = SelectSettings(ALL, selector or self.tiny.selector)
        selections = select_tokens(self.encoded, ids, self.encoder.projector, settings)
        sizes = [{"width": image.width, "height": image.height} for image in self.images]
        rows = [
            DecodedRow(shard=0, source=image_id, image_id=image_id, reason=None, message=None, **size)
            for image_id, size in zip(ids, sizes, strict=True)
        ]
        ranked = list(zip(rows, self.encoded, selections, strict=True))
        stored = table_of(SelectionRow, [decision_of(*one) for one in ranked]).to_pylist()
        return [
            {**decision, "features": feature_row(row, kept_rows(image, selection), "model").features}
            for decision, (row, image, selection) in zip(stored, ranked, strict=True)
        ]

    def kept(self, budget: Budget, selector: str | None = None) -> dict[str, KeptImage]:
        """The images at a budget, read back from what would be stored."""
        names = schema_of(StoredSelection).names
        rows = [
            (StoredSelection(**{name: row[name] for name in names}), row["features"]) for row in self.rows(selector)
        ]
        return {row.image_id: kept_image(row, payload, budget) for row, payload in rows}

    def replies(
        self,
        asked: Sequence[tuple[int, str]],
        kept: dict[str, KeptImage],
        *,
        batch_size: int,
        max_new_tokens: int,
        answerer: Answerer | None = None,
    ) -> list[Reply]:
        """What the engine replies to prompts about images, which are given by their number."""
        engine = TransformersEngine(answerer or self.answerer(), batch_size=batch_size, batch_tokens=1 << 15)
        questions = [Question(prompt, kept[f"{image:064x}"]) for image, prompt in asked]
        return engine.answer(questions, Decoding(max_new_tokens))

    def pixel_inputs(self, image: Image.Image) -> dict[str, Any]:
        """What the model's own image processor gives the stock model."""
        inputs = self.tiny.processor()(image, return_tensors="pt", **self.tiny.call)
        return {
            name: value
            for name, value in inputs.items()
            if name not in ("num_patches", "num_crops", "batch_num_images")
        }

    @cache  # noqa: B019
    def stock_features(self, number: int) -> Any:
        """The stock model's features of one of the images."""
        with torch.no_grad():
            return self.stock.model.get_image_features(**self.pixel_inputs(self.images[number]))


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """The case of a family, or of another model of one, by name."""
    cases: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in cases:
            folder = tmp_path_factory.mktemp(name)
            images = [picture(seed, size) for seed, size in enumerate(SIZES)]
            tiny = {**TINY, **MORE}[name]
            cases[name] = Case(tiny, folder, build(tiny, folder), images)
        return cases[name]

    return get
