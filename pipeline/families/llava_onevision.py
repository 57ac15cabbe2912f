"""LLaVA-OneVision, images: an overview and anyres tiles; the model shrinks a projected grid that is too large."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProjector,
)

from pipeline.families.answering import PackedAnswerer
from pipeline.families.anyres import AnyresEncoder, num_tiles, refusal
from pipeline.families.base import Family
from pipeline.families.class_attention import attention_refusal
from pipeline.families.llava import spec_of
from pipeline.families.loading import part_of, projector_form
from pipeline.families.processing import UintPreparer

PROCESSORS = ("LlavaOnevisionImageProcessor",)
NEVER_RESIZED = "anyres_max_1000000"


def _pack(model: Any, rows: Sequence[Tensor], sizes_B2: Tensor, newline_D: Tensor, resize: bool) -> Sequence[Tensor]:
    packed: Sequence[Tensor]
    packed, _ = model.pack_image_features(
        rows,
        sizes_B2,
        image_newline=newline_D,
        vision_aspect_ratio=model.config.vision_aspect_ratio if resize else NEVER_RESIZED,
    )
    return packed


FAMILY = Family(
    name="llava_onevision",
    preparer=partial(UintPreparer, kinds=PROCESSORS, num_tiles=num_tiles),
    encoder=partial(
        AnyresEncoder,
        part=part_of(LlavaOnevisionForConditionalGeneration, "model.language_model", "lm_head"),
        pack=_pack,
        kinds=PROCESSORS,
        group_by_tile=False,
    ),
    answerer=partial(
        PackedAnswerer,
        part=part_of(LlavaOnevisionForConditionalGeneration, "model.vision_tower", "model.multi_modal_projector"),
        placeholder="<image>",
        default_template="<|im_start|>user <image>\n{prompt}<|im_end|><|im_start|>assistant\n",
        newline=lambda model: model.model.image_newline,
        video="<video>",
    ),
    projector=lambda config: spec_of(projector_form(LlavaOnevisionMultiModalProjector, config)),
    projector_weights=r"(^|\.)(multi_modal_projector\.|image_newline$)",
    refusal=refusal,
    attention_refusal=attention_refusal,
)
