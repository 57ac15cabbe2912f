"""PaliGemma 1 and 2: SigLIP tower at one size, a linear projector; image and prompt are one bidirectional prefix.

The projector is linear, so every token has the same Jacobian and the sensitivity tells nothing; selectors that need it
are refused.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.models.paligemma.modeling_paligemma import (
    PaliGemmaForConditionalGeneration,
    PaliGemmaMultiModalProjector,
)

from pipeline.families.answering import PackedAnswerer
from pipeline.families.base import Checkpoint, EncodedImage, Family, Packed, Posed, Segment
from pipeline.families.loading import captured, load_part, part_of, projector_form
from pipeline.families.processing import TilePacker, UintPreparer, image_processor
from pipeline.families.prompting import render_prompt
from zoo_ops import ProjectorSpec

PROCESSORS = ("SiglipImageProcessor",)
PLACEHOLDER = "<image>"


def _spec_of(projector: Any) -> ProjectorSpec:
    return ProjectorSpec(projector.linear, None, None)


class PaliGemmaEncoder:
    """Runs the vision tower and the projector."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._packer = TilePacker(image_processor(checkpoint, PROCESSORS), device, dtype)
        self._model = load_part(
            part_of(PaliGemmaForConditionalGeneration, "model.language_model", "lm_head"), checkpoint, device, dtype
        ).model
        self.projector = _spec_of(self._model.multi_modal_projector)

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """See `Encoder`; all images have the same prepared size."""
        return self._packer.pack(pixels, sizes)

    @torch.inference_mode()
    def encode(self, packed: Packed) -> list[EncodedImage]:
        """Encode all images in one pass of the tower."""
        inputs = self._packer.inputs(packed)
        with captured(self._model.multi_modal_projector) as seen:
            self._model.get_image_features(inputs)
        side = int(seen.input.shape[1] ** 0.5)
        return [
            EncodedImage(features, projected, [Segment(0, 0, side, side)], (side, side, 1))
            for features, projected in zip(seen.input, seen.output, strict=True)
        ]


class PaliGemmaAnswerer(PackedAnswerer):
    """Writes prompts as the model's processor does, without a chat template.

    The image comes first, then a beginning of sequence, the prompt and a line break.
    """

    def render(self, prompt: Posed) -> str:
        """The text of a prompt, with one image placeholder."""
        if self.tokenizer.chat_template:
            return super().render(prompt)
        text = render_prompt(self.tokenizer, prompt, placeholder=PLACEHOLDER, default_template="<image>{prompt}")
        before, after = text.split(PLACEHOLDER)
        return f"{before}{PLACEHOLDER}{self.tokenizer.bos_token}{after}\n"


FAMILY = Family(
    name="paligemma",
    preparer=partial(UintPreparer, kinds=PROCESSORS),
    encoder=PaliGemmaEncoder,
    answerer=partial(
        PaliGemmaAnswerer,
        part=part_of(PaliGemmaForConditionalGeneration, "model.vision_tower", "model.multi_modal_projector"),
        placeholder=PLACEHOLDER,
        default_template=f"{PLACEHOLDER}{{prompt}}\n",
        token_types=lambda is_image_BT: torch.zeros_like(is_image_BT, dtype=torch.int64),
        as_list=False,
        add_special_tokens=False,
    ),
    projector=lambda config: _spec_of(projector_form(PaliGemmaMultiModalProjector, config)),
    projector_weights=r"(^|\.)multi_modal_projector\.",
)
