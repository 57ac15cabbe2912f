"""Tiny models that vLLM's CPU kernels take: those of the families' tests with heads of 32 numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.families.models import TINY, build
from tests.vllm.made import WIDTH

SIZES = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


def build_for_vllm(family: str, folder: Path) -> None:
    """Save a family's model and tokenizer."""
    tiny = TINY[family]

    def config() -> Any:
        made = tiny.config()
        text, vision = made.get_text_config(), made.vision_config
        for name, value in {**SIZES, "max_position_embeddings": 512}.items():
            setattr(text, name, value)
        if "mrope_section" in (getattr(text, "rope_parameters", None) or {}):
            published = {"mrope_interleaved": True} if family == "qwen3_vl" else {}  # as published checkpoints have it
            text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 4, 4], **published}
        for name in ("out_hidden_size", *(["hidden_size"] if family == "qwen2_vl" else [])):
            if hasattr(vision, name):
                setattr(vision, name, WIDTH)
        return made

    build(replace(tiny, config=config), folder)
