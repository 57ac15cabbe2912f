"""LLaVA-NeXT (1.6): an overview and anyres tiles, unpadded, a newline after every row; tokens compete in their tile."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProjector,
)

from pipeline.families.answering import PackedAnswerer
from pipeline.families.anyres import AnyresEncoder, num_tiles, refusal
from pipeline.families.base import Family
from pipeline.families.class_attention import attention_refusal
from pipeline.families.llava import spec_of
from pipeline.families.loading import part_of, projector_form
from pipeline.families.processing import UintPreparer

PROCESSORS = ("LlavaNextImageProcessor",)


def _pack(model: Any, rows: Sequence[Tensor], sizes_B2: Tensor, newline_D: Tensor, _resize: bool) -> Sequence[Tensor]:
    packed: Sequence[Tensor]
    packed, _ = model.pack_image_features(
        rows,
        sizes_B2,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        image_newline=newline_D,
    )
    return packed


FAMILY = Family(
    name="llava_next",
    preparer=partial(UintPreparer, kinds=PROCESSORS, num_tiles=num_tiles),
    encoder=partial(
        AnyresEncoder,
        part=part_of(LlavaNextForConditionalGeneration, "model.language_model", "lm_head"),
        pack=_pack,
        kinds=PROCESSORS,
        group_by_tile=True,
    ),
    answerer=partial(
        PackedAnswerer,
        part=part_of(LlavaNextForConditionalGeneration, "model.vision_tower", "model.multi_modal_projector"),
        placeholder="<image>",
        default_template="USER: <image>\n{prompt} ASSISTANT:",
        newline=lambda model: model.model.image_newline,
    ),
    projector=lambda config: spec_of(projector_form(LlavaNextMultiModalProjector, config)),
    projector_weights=r"(^|\.)(multi_modal_projector\.|image_newline$)",
    refusal=refusal,
    attention_refusal=attention_refusal,
)
