"""Gemma 3: SigLIP tower at one size, projector of 4 x 4 pooling, RMSNorm and one matrix; image tokens see each other.

A token's vision feature is the pooled one. The norm makes the Jacobian differ from token to token, but there is no
closed form of it, so the sensitivity is estimated by `directional`. Pan and scan is off, as it is by default.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3ForConditionalGeneration,
    Gemma3MultiModalProjector,
)

from pipeline.families.answering import PackedAnswerer
from pipeline.families.base import Checkpoint, EncodedImage, Family, Packed, Segment
from pipeline.families.loading import captured, load_part, part_of, projector_form
from pipeline.families.processing import TilePacker, UintPreparer, image_processor
from zoo_ops import ProjectorSpec

PROCESSORS = ("Gemma3ImageProcessor",)
BEGIN, TOKEN, END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"


class _NormAndMatrix(nn.Module):
    """The part of the stock projector that follows its pooling, with the stock parameters."""

    def __init__(self, projector: Any) -> None:
        super().__init__()
        self.norm = projector.mm_soft_emb_norm
        self.matrix = projector.mm_input_projection_weight

    def forward(self, pooled: Tensor) -> Tensor:
        return self.norm(pooled) @ self.matrix


def _spec_of(projector: Any) -> ProjectorSpec:
    return ProjectorSpec.opaque(_NormAndMatrix(projector))


class Gemma3Encoder:
    """Runs the vision tower and the projector."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._packer = TilePacker(image_processor(checkpoint, PROCESSORS), device, dtype)
        self._model = load_part(
            part_of(Gemma3ForConditionalGeneration, "model.language_model", "lm_head"), checkpoint, device, dtype
        ).model
        self.projector = _spec_of(self._model.multi_modal_projector)

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """See `Encoder`; all images have the same prepared size."""
        return self._packer.pack(pixels, sizes)

    @torch.inference_mode()
    def encode(self, packed: Packed) -> list[EncodedImage]:
        """Encode all images in one pass of the tower."""
        inputs = self._packer.inputs(packed)
        projector = self._model.multi_modal_projector
        with captured(projector.mm_soft_emb_norm) as norm, captured(projector) as whole:
            self._model.get_image_features(pixel_values=inputs)
        side = projector.tokens_per_side
        return [
            EncodedImage(features, projected, [Segment(0, 0, side, side)], (side, side, 1))
            for features, projected in zip(norm.input, whole.output, strict=True)
        ]


FAMILY = Family(
    name="gemma3",
    preparer=partial(UintPreparer, kinds=PROCESSORS, do_pan_and_scan=False),
    encoder=Gemma3Encoder,
    answerer=partial(
        PackedAnswerer,
        part=part_of(Gemma3ForConditionalGeneration, "model.vision_tower", "model.multi_modal_projector"),
        placeholder=BEGIN,
        default_template=f"<start_of_turn>user\n{BEGIN}{{prompt}}<end_of_turn>\n<start_of_turn>model\n",
        expand=lambda text: text.replace(BEGIN, f"\n\n{BEGIN}{TOKEN}{END}\n\n"),
        token_types=lambda is_image_BT: is_image_BT.long(),
        as_list=False,
    ),
    projector=lambda config: _spec_of(projector_form(Gemma3MultiModalProjector, config)),
    projector_weights=r"(^|\.)multi_modal_projector\.",
)
