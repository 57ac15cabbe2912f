"""Model classes with which vLLM answers about pruned images: their kept rows stand in place of a vision tower's output.

vLLM finds `register` through the entry point group `vllm.general_plugins`. A class is chosen with
`hf_overrides={"architectures": [NAME]}`; where this package is missing, vLLM refuses the name.
"""

from typing import NamedTuple


class Model(NamedTuple):
    """One model class."""

    architecture: str  # its name, to be given in `hf_overrides`
    place: str  # module and class


# By the `model_type` of the checkpoint's config.
MODELS = {
    "llava": Model("ZooPruneLlavaForConditionalGeneration", "zoo_prune_vllm.packed:KeptLlava"),
    "llava_next": Model("ZooPruneLlavaNextForConditionalGeneration", "zoo_prune_vllm.packed:KeptLlavaNext"),
    "llava_onevision": Model(
        "ZooPruneLlavaOnevisionForConditionalGeneration", "zoo_prune_vllm.packed:KeptLlavaOnevision"
    ),
    "internvl": Model("ZooPruneInternVLForConditionalGeneration", "zoo_prune_vllm.packed:KeptInternVL"),
    "qwen2_vl": Model("ZooPruneQwen2VLForConditionalGeneration", "zoo_prune_vllm.grid:KeptQwen2VL"),
    "qwen2_5_vl": Model("ZooPruneQwen2_5_VLForConditionalGeneration", "zoo_prune_vllm.grid:KeptQwen2_5_VL"),
    "qwen3_vl": Model("ZooPruneQwen3VLForConditionalGeneration", "zoo_prune_vllm.grid:KeptQwen3VL"),
}
LIMITS = {"image": 0, "video": 0}  # of `limit_mm_per_prompt`, with which vLLM builds no vision tower


def register() -> None:
    """Tell vLLM the names; it imports a class when its name is asked for."""
    from vllm import ModelRegistry

    for model in MODELS.values():
        ModelRegistry.register_model(model.architecture, model.place)
