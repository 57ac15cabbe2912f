"""Models that place image tokens on a grid: kept tokens stay where they were in the whole image."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY

from zoo_prune_vllm.rows import GRID, PLACES, GridRowsInfo, KeptRows, KeptRowsDummies, KeptRowsProcessor

_processed = MULTIMODAL_REGISTRY.register_processor(KeptRowsProcessor, info=GridRowsInfo, dummy_inputs=KeptRowsDummies)


class GridRows(KeptRows):
    """Before a model class of vLLM that numbers tokens by time, row and column."""

    interleaves: ClassVar = False  # time, row and column in the pairs that are rotated, whatever the config says

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        rope = vllm_config.model_config.hf_config.get_text_config().rope_parameters or {}
        if bool(rope.get("mrope_interleaved")) != self.interleaves:
            found, fix = ("lack", "add it to") if self.interleaves else ("have", "remove it from")
            raise ValueError(
                f'text_config.rope_parameters of this checkpoint {found} "mrope_interleaved": true, so that vLLM would '
                f"rotate positions in another way than Transformers; {fix} config.json"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Positions (3, T), and by how much the next token's position exceeds its number.

        Text behind an image begins one past the larger side of the whole grid, as if nothing had been pruned.
        """
        parts, done, position = [], 0, 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            places_K2 = feature.data[PLACES].data.long()
            text = feature.mm_position.offset - done
            parts.append(_text(text) + position)
            position += text
            parts.append(torch.cat([torch.zeros(1, len(places_K2), dtype=torch.int64), places_K2.T]) + position)
            position += int(feature.data[GRID].data.max())
            done += text + len(places_K2)
        text = len(input_tokens) - done
        parts.append(_text(text) + position)
        return torch.cat(parts, dim=1), position + text - len(input_tokens)


def _text(length: int) -> Tensor:
    """Positions (3, length) of text, from 0 on."""
    return torch.arange(length).expand(3, -1)


@_processed
class KeptQwen2VL(GridRows, Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""


@_processed
class KeptQwen2_5_VL(GridRows, Qwen2_5_VLForConditionalGeneration):  # noqa: N801
    """Qwen2.5-VL."""


@_processed
class KeptQwen3VL(GridRows, Qwen3VLForConditionalGeneration):
    """Qwen3-VL. A row holds the features and, side by side behind them, those of each deepstack level."""

    interleaves = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        # Without a tower vLLM forgoes deepstack; here its levels come with the rows.
        self.use_deepstack = True
        self.deepstack_num_level = len(config.vision_config.deepstack_visual_indexes)
        self.multiscale_dim = self.visual_dim * self.deepstack_num_level
        self.deepstack_input_embeds = [
            torch.zeros(vllm_config.scheduler_config.max_num_batched_tokens, config.text_config.hidden_size)
            for _ in range(self.deepstack_num_level)
        ]
        self.deepstack_input_embeds_num_tokens = 0
