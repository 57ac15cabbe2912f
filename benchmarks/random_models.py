"""Checkpoints with the shape of real models and random weights: good for measuring how fast they are, and no more.

A shape's tower, projector and image geometry are those of the model it is named for; `small` ones have the same parts
on small images. The language model behind them has a vocabulary of a few words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIAL = (
    "<pad>", "<unk>", "<s>", "</s>", "<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
)  # fmt: skip
WORDS = ("what", "is", "in", "the", "picture", "USER:", "ASSISTANT:", "user", "assistant", "?")
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}


@dataclass(frozen=True)
class Sizes:
    """What a shape is built with."""

    image: int  # pixels of a side of the tower's input, or of a large image of Qwen's
    patch: int
    layers: int
    width: int  # of the tower
    heads: int
    text_width: int  # of the language model, which is the projector's output
    text_layers: int


@dataclass(frozen=True)
class Shape:
    """A model to measure with."""

    name: str
    image_token: str
    stock: type[Any]
    config: Callable[[Sizes], Any]
    processor: Callable[[Sizes], Any]
    real: Sizes
    small: Sizes
    picture: tuple[int, int]  # width and height of the images it is measured with, of the real one
    max_tokens: str

    def picture_of(self, sizes: Sizes) -> tuple[int, int]:
        """Width and height of the images that these sizes are measured with."""
        width, height = self.picture
        return max(8, width * sizes.image // self.real.image), max(8, height * sizes.image // self.real.image)

    def save(self, folder: Path, sizes: Sizes, dtype: torch.dtype) -> str:
        """Write a checkpoint of random weights; the same every time."""
        torch.manual_seed(0)
        model = self.stock(self.config(sizes)).to(dtype)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        model.save_pretrained(folder)
        self.processor(sizes).save_pretrained(folder)
        words = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
        words.pre_tokenizer = WhitespaceSplit()
        PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
            additional_special_tokens=list(SPECIAL[4:]),
        ).save_pretrained(folder)  # fmt: skip
        return str(folder)


def _text(sizes: Sizes) -> dict[str, Any]:
    heads = max(4, sizes.text_width // 128)
    return {
        "hidden_size": sizes.text_width,
        "intermediate_size": sizes.text_width * 11 // 4,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": len(VOCABULARY),
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }


def _clip(sizes: Sizes) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "image_size": sizes.image,
        "patch_size": sizes.patch,
        "projection_dim": sizes.width,
    }


def _pinpoints(side: int) -> list[list[int]]:
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]


def _llava(sizes: Sizes) -> LlavaConfig:
    text = {"model_type": "llama", **_text(sizes)}
    return LlavaConfig(vision_config=_clip(sizes), text_config=text, image_token_index=VOCABULARY["<image>"])


def _llava_next(sizes: Sizes) -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=_clip(sizes),
        text_config={"model_type": "llama", **_text(sizes)},
        image_token_index=VOCABULARY["<image>"],
        image_grid_pinpoints=_pinpoints(sizes.image),
    )


def _qwen(sizes: Sizes) -> Qwen2_5_VLConfig:
    rotated = sizes.text_width // max(4, sizes.text_width // 128) // 2
    vision = {
        "depth": sizes.layers,
        "hidden_size": sizes.width,
        "out_hidden_size": sizes.text_width,
        "intermediate_size": sizes.width * 8 // 3 // 4 * 4,
        "num_heads": sizes.heads,
        "patch_size": sizes.patch,
        "window_size": 8 * sizes.patch,
        "fullatt_block_indexes": list(range(7, sizes.layers, 8)) or [sizes.layers - 1],
    }
    sections = [rotated - 2 * (rotated * 3 // 8), rotated * 3 // 8, rotated * 3 // 8]
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6}
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**_text(sizes), "rope_parameters": rope},
        image_token_id=VOCABULARY["<|image_pad|>"],
        video_token_id=VOCABULARY["<|video_pad|>"],
        vision_start_token_id=VOCABULARY["<|vision_start|>"],
        vision_end_token_id=VOCABULARY["<|vision_end|>"],
    )


def _square(sizes: Sizes) -> dict[str, Any]:
    return {"size": {"shortest_edge": sizes.image}, "crop_size": {"height": sizes.image, "width": sizes.image}}


CLIP_L = Sizes(image=336, patch=14, layers=24, width=1024, heads=16, text_width=4096, text_layers=4)
SMALL_CLIP = Sizes(image=28, patch=7, layers=2, width=32, heads=4, text_width=32, text_layers=2)
SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "LLaVA-1.5", "<image>", LlavaForConditionalGeneration, _llava,
            lambda sizes: CLIPImageProcessorPil(**_square(sizes)), CLIP_L, SMALL_CLIP, (640, 480), "64",
        ),
        Shape(
            "LLaVA-NeXT", "<image>", LlavaNextForConditionalGeneration, _llava_next,
            lambda sizes: LlavaNextImageProcessorPil(
                **_square(sizes), image_grid_pinpoints=_pinpoints(sizes.image)
            ),
            CLIP_L, SMALL_CLIP, (640, 480), "0.22",
        ),
        Shape(
            "Qwen2.5-VL", "<|image_pad|>", Qwen2_5_VLForConditionalGeneration, _qwen,
            lambda sizes: Qwen2VLImageProcessorPil(
                size={"shortest_edge": 4 * sizes.patch**2 * 16, "longest_edge": sizes.image**2},
                patch_size=sizes.patch,
            ),
            Sizes(image=896, patch=14, layers=32, width=1280, heads=16, text_width=3584, text_layers=4),
            Sizes(image=112, patch=7, layers=2, width=32, heads=4, text_width=32, text_layers=2), (896, 896), "0.2",
        ),
    )
}  # fmt: skip
