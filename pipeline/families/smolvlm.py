"""SmolVLM and SmolVLM2 on images: they are built as Idefics3 is, under names of their own."""

from functools import partial

from transformers.models.smolvlm.modeling_smolvlm import (
    SmolVLMConnector,
    SmolVLMForConditionalGeneration,
)

from pipeline.families.base import Family
from pipeline.families.idefics3 import TileAnswerer, TileEncoder, TilePreparer, spec_of
from pipeline.families.loading import part_of, projector_form

PROCESSORS = ("SmolVLMImageProcessor", "Idefics3ImageProcessor")

FAMILY = Family(
    name="smolvlm",
    preparer=partial(TilePreparer, kinds=PROCESSORS),
    encoder=partial(
        TileEncoder, part=part_of(SmolVLMForConditionalGeneration, "model.text_model", "lm_head"), kinds=PROCESSORS
    ),
    answerer=partial(
        TileAnswerer,
        part=part_of(SmolVLMForConditionalGeneration, "model.vision_model", "model.connector"),
        video="<video>",
    ),
    projector=lambda config: spec_of(projector_form(SmolVLMConnector, config)),
    projector_weights=r"(^|\.)connector\.",
    positions=("compact",),
)
