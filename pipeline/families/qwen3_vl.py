"""Qwen3-VL: as Qwen2-VL, but features of earlier tower layers (deepstack) go into the first language-model layers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLForConditionalGeneration,
    Qwen3VLVisionPatchMerger,
)
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from pipeline.families.base import Family, KeptImage
from pipeline.families.grid_rope import GridAnswerer, GridEncoder, GridPreparer
from pipeline.families.loading import part_of, projector_form
from zoo_ops import NormSpec, ProjectorSpec


def _spec_of(merger: Any) -> ProjectorSpec:
    norm = NormSpec.of(merger.norm, per_patch=not merger.use_postshuffle_norm)
    patches = merger.linear_fc1.in_features // merger.norm.normalized_shape[0]
    return ProjectorSpec(merger.linear_fc1, merger.act_fn, merger.linear_fc2, norm, patches)


def _merger(config: Any) -> nn.Module:
    return Qwen3VLVisionPatchMerger(config.vision_config, use_postshuffle_norm=False)


def _interpolation(tower: Any, grid_B3: Tensor) -> Mapping[str, Tensor]:
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_B3,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=tower.config.spatial_merge_size,
    )
    return {"interp_indices": indices, "interp_weights": weights}


def _output(images: Sequence[KeptImage], to_model: Callable[[Tensor], Tensor]) -> Any:
    levels = [f"deepstack.{level}" for level in range(len(images[0].extras_KO))]
    features: Any = [to_model(image.features_KO) for image in images]
    deepstack: Any = [[to_model(image.extras_KO[level]) for image in images] for level in levels]
    return BaseModelOutputWithDeepstackFeatures(pooler_output=features, deepstack_features=deepstack)


FAMILY = Family(
    name="qwen3_vl",
    preparer=GridPreparer,
    encoder=partial(
        GridEncoder,
        part=part_of(Qwen3VLForConditionalGeneration, "model.language_model", "lm_head"),
        spec_of=_spec_of,
        facts=_interpolation,
    ),
    answerer=partial(GridAnswerer, part=part_of(Qwen3VLForConditionalGeneration, "model.visual"), output=_output),
    projector=lambda config: _spec_of(projector_form(_merger, config)),
    projector_weights=r"(^|\.)visual\.(merger|deepstack_merger_list)\.",
    positions=("grid",),
    centring="patches",
)
