"""Qwen2-VL: images of any size; the merger's LayerNorm works on each patch, then Linear-GELU-Linear on four of them."""

from functools import partial
from typing import Any

from torch import nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger, Qwen2VLForConditionalGeneration

from pipeline.families.base import Family
from pipeline.families.grid_rope import GridAnswerer, GridEncoder, GridPreparer
from pipeline.families.loading import part_of, projector_form
from zoo_ops import NormSpec, ProjectorSpec


def _spec_of(merger: Any) -> ProjectorSpec:
    linear_in, activation, linear_out = merger.mlp
    norm = NormSpec.of(merger.ln_q, per_patch=True)
    return ProjectorSpec(linear_in, activation, linear_out, norm, merger.hidden_size // norm.weight.shape[0])  # type: ignore[union-attr]


def _merger(config: Any) -> nn.Module:
    vision = config.vision_config
    return PatchMerger(vision.hidden_size, vision.embed_dim, vision.spatial_merge_size)


FAMILY = Family(
    name="qwen2_vl",
    preparer=GridPreparer,
    encoder=partial(
        GridEncoder, part=part_of(Qwen2VLForConditionalGeneration, "model.language_model", "lm_head"), spec_of=_spec_of
    ),
    answerer=partial(GridAnswerer, part=part_of(Qwen2VLForConditionalGeneration, "model.visual")),
    projector=lambda config: _spec_of(projector_form(_merger, config)),
    projector_weights=r"(^|\.)visual\.merger\.",
    positions=("grid",),
    centring="patches",
)
