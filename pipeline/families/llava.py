"""LLaVA-1.5: CLIP (or SigLIP) tower, Linear-GELU-Linear projector, one fixed square grid, 1-D positions."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaMultiModalProjector,
)

from pipeline.families.answering import PackedAnswerer
from pipeline.families.base import Checkpoint, EncodedImage, Family, Packed, Segment
from pipeline.families.class_attention import ClassAttention, attention_refusal
from pipeline.families.loading import captured, load_part, part_of, projector_form
from pipeline.families.processing import TilePacker, UintPreparer, image_processor
from zoo_ops import ProjectorSpec

PROCESSORS = ("LlavaImageProcessor", "CLIPImageProcessor", "SiglipImageProcessor")
TOWERS = ("clip_vision_model", "siglip_vision_model")


def spec_of(projector: Any) -> ProjectorSpec:
    """The form of a stock LLaVA projector."""
    return ProjectorSpec(linear_in=projector.linear_1, activation=projector.act, linear_out=projector.linear_2)


def refusal(config: Any) -> str | None:
    """Why this LLaVA config can't be handled, None if it can.

    It may have another tower, or a class token among the visual tokens.
    """
    tower = config.vision_config.model_type
    if tower not in TOWERS:
        return f"its vision tower is a {tower}; LLaVA models are handled with {' or '.join(TOWERS)}"
    if tower == "clip_vision_model" and config.vision_feature_select_strategy != "default":
        return (
            f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, which keeps the class "
            "token among the visual tokens; only 'default' is handled"
        )
    return None


class LlavaEncoder:
    """Runs the vision tower and the projector."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._packer = TilePacker(image_processor(checkpoint, PROCESSORS), device, dtype)
        self._model = load_part(
            part_of(LlavaForConditionalGeneration, "model.language_model", "lm_head"), checkpoint, device, dtype
        ).model
        self.projector = spec_of(self._model.multi_modal_projector)
        self._patch_size = checkpoint.config.vision_config.patch_size
        self._attention = ClassAttention(self._model.vision_tower, checkpoint.config)

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """See `Encoder`; all images have the same prepared size."""
        return self._packer.pack(pixels, sizes)

    @torch.inference_mode()
    def encode(self, packed: Packed) -> list[EncodedImage]:
        """Encode all images in one pass of the tower."""
        inputs = self._packer.inputs(packed)
        with captured(self._model.multi_modal_projector) as seen, self._attention.recorded() as attention:
            self._model.get_image_features(pixel_values=inputs)
        rows, cols = (side // self._patch_size for side in inputs.shape[-2:])
        segments = [Segment(0, 0, rows, cols)]
        if seen.input.shape[1] == rows * cols - 1:
            # The model leaves out the first token, which is a patch where the tower has no class token.
            segments = [Segment(0, 0, 1, cols - 1, col=1), Segment(cols - 1, 0, rows - 1, cols, row=1)]
        count = len(packed.shapes)
        attentions = [None] * count if attention is None else attention.of_each([1] * count)
        return [
            EncodedImage(features, projected, segments, (rows, cols, 1), class_attention=paid)
            for features, projected, paid in zip(seen.input, seen.output, attentions, strict=True)
        ]


FAMILY = Family(
    name="llava",
    preparer=partial(UintPreparer, kinds=PROCESSORS),
    encoder=LlavaEncoder,
    answerer=partial(
        PackedAnswerer,
        part=part_of(LlavaForConditionalGeneration, "model.vision_tower", "model.multi_modal_projector"),
        placeholder="<image>",
        default_template="USER: <image>\n{prompt} ASSISTANT:",
    ),
    projector=lambda config: spec_of(projector_form(LlavaMultiModalProjector, config)),
    projector_weights=r"(^|\.)multi_modal_projector\.",
    refusal=refusal,
    attention_refusal=attention_refusal,
)
