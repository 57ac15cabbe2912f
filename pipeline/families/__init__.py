"""The model families. Each has one adapter file, and one line here."""

from importlib import import_module

from pipeline.families.base import Family

# Transformers `model_type` -> adapter module.
FAMILIES = {
    "llava": "pipeline.families.llava",
    "llava_next": "pipeline.families.llava_next",
    "llava_onevision": "pipeline.families.llava_onevision",
    "qwen2_vl": "pipeline.families.qwen2_vl",
    "qwen2_5_vl": "pipeline.families.qwen2_5_vl",
    "qwen3_vl": "pipeline.families.qwen3_vl",
    "internvl": "pipeline.families.internvl",
    "gemma3": "pipeline.families.gemma3",
    "paligemma": "pipeline.families.paligemma",
    "idefics3": "pipeline.families.idefics3",
    "smolvlm": "pipeline.families.smolvlm",
}


def family_of(model_type: str) -> Family | None:
    """The family that handles checkpoints of this `model_type`, or None."""
    module = FAMILIES.get(model_type)
    return import_module(module).FAMILY if module else None
