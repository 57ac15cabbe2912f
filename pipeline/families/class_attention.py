"""What the class token of a CLIP tower pays its patches, from queries and keys that the tower computes anyway."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.families.base import no_class_token
from pipeline.families.loading import captured
from zoo_ops import class_attention


def layer_before_projector(config: Any) -> int | None:
    """The layer of a CLIP tower whose output the projector reads; None where there is none, or no CLIP tower.

    `vision_feature_layer` counts hidden states, of which the first is that of the embeddings and every other one the
    output of a layer. So -2 is the output of the last layer but one, whose attention VisionZip and SCOPE take too.
    """
    place = config.vision_feature_layer
    if config.vision_config.model_type != "clip_vision_model" or not isinstance(place, int):
        return None
    layer = place - 1 if place >= 0 else config.vision_config.num_hidden_layers + place
    return layer if layer >= 0 else None


def attention_refusal(config: Any) -> str | None:
    """Why a LLaVA of this config has no such attention, None if it has."""
    if config.vision_config.model_type != "clip_vision_model":
        return no_class_token(config)
    if layer_before_projector(config) is None:
        return (
            f"vision_feature_layer of the model's config is {config.vision_feature_layer}, which names no one layer "
            "whose attention there would be"
        )
    return None


@dataclass
class Recorded:
    """Queries and keys of the layer before the projector, in the tower's last pass."""

    num_heads: int
    query_BD: Tensor  # of the class token
    keys_BTD: Tensor

    def of_each(self, counts: Sequence[int]) -> list[Callable[[], Tensor]]:
        """The attention in each image, of which the tower was given so many pictures: () -> (count * N,)."""
        parts = zip(self.query_BD.split(list(counts)), self.keys_BTD.split(list(counts)), strict=True)
        return [partial(self._attention, *part) for part in parts]

    def _attention(self, query_BD: Tensor, keys_BTD: Tensor) -> Tensor:
        return class_attention(query_BD, keys_BTD, num_heads=self.num_heads).flatten()


class ClassAttention:
    """Listens to one layer of a tower, whose own numbers stay as they are: it computes what it would without."""

    def __init__(self, tower: Any, config: Any) -> None:
        layer = layer_before_projector(config)
        self._attention = None if layer is None else tower.encoder.layers[layer].self_attn

    @contextmanager
    def recorded(self) -> Iterator[Recorded | None]:
        """Record the pass of the tower that the block makes; None where the tower has no class token."""
        if self._attention is None:
            yield None
            return
        seen = Recorded(self._attention.num_heads, torch.empty(0), torch.empty(0))
        with ExitStack() as stack:
            queries = stack.enter_context(captured(self._attention.q_proj))
            keys = stack.enter_context(captured(self._attention.k_proj))
            yield seen
            seen.query_BD, seen.keys_BTD = queries.output[:, 0].clone(), keys.output
