"""Questions about made-up images, and a stand-in for a family's language model that notes what it is given."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from pipeline.answer.engine import Question
from pipeline.artifact.artifact import Artifact
from pipeline.budget import Budget
from pipeline.families.base import KeptImage, Posed, UnusablePromptError
from pipeline.loader.shard import ShardLoader
from schemas.stored import StoredSelection

IMAGE, END, WORD = 9, 1, 7  # token ids


def kept(image_id: str, tokens: int = 2) -> KeptImage:
    """An image of 100 tokens of which the first few are kept."""
    selection = StoredSelection(
        image_id=image_id, num_tokens=100, num_kept=tokens, num_structure=0, grid={}, segments=[], structure=[],
        ranking=list(range(tokens)), gain=[1.0] * tokens,
    )  # fmt: skip
    return KeptImage(image_id, selection, torch.arange(tokens), torch.zeros(tokens, 1), {})


def question(prompt: str, image_id: str = "a", tokens: int = 2) -> Question:
    return Question(prompt, kept(image_id, tokens))


class FakeCache:
    """Of one pass: how many rows it holds."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.rows = len(indices)


class FakeModel(nn.Module):
    """Generates `WORD` as often as it may, or ends after the first where the prompt's last token is odd."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=SimpleNamespace)
        self.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=0)
        self.passes: list[int] = []  # rows of each pass over beginnings
        self.batches: list[dict[str, Any]] = []  # each call of `generate`

    def get_input_embeddings(self) -> nn.Embedding:
        return nn.Embedding(50, 1)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        self.passes.append(len(input_ids))
        return SimpleNamespace(past_key_values=FakeCache(len(input_ids)))

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **given: Any) -> torch.Tensor:
        self.batches.append({"input_ids": input_ids, **given})
        made = torch.full((len(input_ids), max_new_tokens), WORD)
        made[input_ids[:, -1] % 2 == 1, 1:] = END
        return torch.cat([input_ids, made], 1)


class FakeAnswerer:
    """Prompts are digits, each a token id; "<>" is the place of the image, which else comes first; "!" is refused."""

    image_token_id = IMAGE

    def __init__(self, context: int | None = None) -> None:
        self.model = FakeModel()
        self.context = context
        self.shares_beginnings = self.takes_padding = True
        self.tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: f" {' '.join(map(str, ids))} ")

    def render(self, prompt: Posed) -> str:
        return prompt if isinstance(prompt, str) else " ".join(turn.text for turn in prompt)

    def token_ids(self, prompt: str, image: KeptImage) -> list[int]:
        if "!" in prompt:
            raise UnusablePromptError(f"{prompt} can't be posed")
        before, _, behind = prompt.rpartition("<>")
        return [*map(int, before), *[IMAGE] * len(image.indices_K), *map(int, behind)]

    def image_inputs(
        self, images: list[KeptImage], input_ids_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> dict[str, Any]:
        return {"mm_encoder_outputs": [image.image_id for image in images]}


def questions_of(few: Path, budget: Budget, count: int = 8) -> list[Question]:
    """The first questions of a pruned artifact."""
    loaded = ShardLoader(Artifact(few)).load(0, budget)
    return [Question(one.prompt, loaded.images[one.image_id], one.prompt_id) for one in loaded.prompts[:count]]
