"""Model classes with which vLLM answers about pruned images: their kept rows stand in place of a vision tower's output.

vLLM finds `register` through the entry point group `vllm.general_plugins`. A class is chosen with
`hf_overrides={"architectures": [NAME]}`; where this package is missing, vLLM refuses the name.
"""

# Transformers `model_type` -> the architecture's name, and the class behind it.
MODELS = {
    "llava": ("ZooPruneLlavaForConditionalGeneration", "zoo_prune_vllm.packed:KeptLlava"),
    "llava_next": ("ZooPruneLlavaNextForConditionalGeneration", "zoo_prune_vllm.packed:KeptLlavaNext"),
    "llava_onevision": ("ZooPruneLlavaOnevisionForConditionalGeneration", "zoo_prune_vllm.packed:KeptLlavaOnevision"),
    "internvl": ("ZooPruneInternVLForConditionalGeneration", "zoo_prune_vllm.packed:KeptInternVL"),
    "qwen2_vl": ("ZooPruneQwen2VLForConditionalGeneration", "zoo_prune_vllm.grid:KeptQwen2VL"),
    "qwen2_5_vl": ("ZooPruneQwen2_5_VLForConditionalGeneration", "zoo_prune_vllm.grid:KeptQwen2_5_VL"),
    "qwen3_vl": ("ZooPruneQwen3VLForConditionalGeneration", "zoo_prune_vllm.grid:KeptQwen3VL"),
}


def register() -> None:
    """Tell vLLM the names; it imports a class when its name is asked for."""
    from vllm import ModelRegistry

    for architecture, place in MODELS.values():
        ModelRegistry.register_model(architecture, place)
