"""Qwen2.5-VL: as Qwen2-VL with an RMSNorm in the merger. The tower works in windows, whose order is undone."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLPatchMerger,
)
from transformers.vision_utils import get_vision_window_index

from pipeline.families.base import Family
from pipeline.families.grid_rope import GridAnswerer, GridEncoder, GridPreparer
from pipeline.families.loading import part_of, projector_form
from zoo_ops import NormSpec, ProjectorSpec


def _spec_of(merger: Any) -> ProjectorSpec:
    linear_in, activation, linear_out = merger.mlp
    norm = NormSpec("rms", merger.ln_q.weight, eps=merger.ln_q.variance_epsilon, per_patch=True)
    patches = merger.hidden_size // merger.ln_q.weight.shape[0]
    return ProjectorSpec(linear_in, activation, linear_out, norm, patches)


def _merger(config: Any) -> nn.Module:
    vision = config.vision_config
    return Qwen2_5_VLPatchMerger(vision.out_hidden_size, vision.hidden_size, vision.spatial_merge_size)


def _windows(tower: Any, grid_B3: Tensor) -> Mapping[str, Tensor]:
    window_index, cu_window_seqlens = get_vision_window_index(
        grid_B3,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return {"window_index": window_index, "cu_window_seqlens": cu_window_seqlens}


FAMILY = Family(
    name="qwen2_5_vl",
    preparer=GridPreparer,
    encoder=partial(
        GridEncoder,
        part=part_of(Qwen2_5_VLForConditionalGeneration, "model.language_model", "lm_head"),
        spec_of=_spec_of,
        facts=_windows,
    ),
    answerer=partial(GridAnswerer, part=part_of(Qwen2_5_VLForConditionalGeneration, "model.visual")),
    projector=lambda config: _spec_of(projector_form(_merger, config)),
    projector_weights=r"(^|\.)visual\.merger\.",
    positions=("grid",),
    centring="patches",
)
