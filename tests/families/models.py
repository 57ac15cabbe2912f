"""Tiny random models of every family, from the real config classes, saved as checkpoints with their own tokenizers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

WORDS = [
    *("what", "is", "in", "the", "picture", "how", "many", "colour", "of", "red", "blue", "this", "that"),
    *("USER:", "ASSISTANT:", "user", "assistant"),
]
SPECIAL = [
    *("<pad>", "<unk>", "<s>", "</s>", "<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>"),
    *("<|vision_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<fake_token_around_image>", "<global-img>"),
    *("<end_of_utterance>", *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5))),
]
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *WORDS, *(f"w{n}" for n in range(60))])}

CHAT = (
    "{{% for m in messages %}}<|im_start|> user {{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{image}{{% else %}} {{{{ c['text'] }}}}{{% endif %}}"
    "{{% endfor %}} <|im_end|> {{% endfor %}}{{% if add_generation_prompt %}}<|im_start|> assistant {{% endif %}}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(VOCABULARY),
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 16,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [56, 84]]
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1000.0}


@dataclass(frozen=True)
class Tiny:
    """How to build one family's tiny model."""

    family: str
    stock: type[Any]
    config: Callable[[], Any]
    processor: Callable[[], Any]
    image_text: str  # what the chat template writes for an image
    placeholder: str  # of which one image token per visual token is written
    wrap: str = "{}"  # around the image tokens, where the model's processor adds something
    token: str = ""  # the image token, where it is not the placeholder
    call: dict[str, Any] = field(default_factory=dict)  # for the stock image processor
    linear: bool = False  # the projector is
    has_template: bool = True

    @property
    def image_token_id(self) -> int:
        return VOCABULARY[self.token or self.placeholder]

    @property
    def selector(self) -> str:
        return "divprune" if self.linear else "zoo"


def _token(word: str) -> int:
    return VOCABULARY[word]


def _llava() -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIP, text_config={"model_type": "llama", **TEXT}, image_token_index=_token("<image>")
    )


def _llava_next() -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **TEXT},
        image_token_index=_token("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )


def _onevision() -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=_token("<image>"),
        video_token_index=_token("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_3",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


QWEN_IDS = {
    "image_token_id": _token("<|image_pad|>"),
    "video_token_id": _token("<|video_pad|>"),
    "vision_start_token_id": _token("<|vision_start|>"),
    "vision_end_token_id": _token("<|vision_end|>"),
}


def _qwen2() -> Qwen2VLConfig:
    vision = {
        "depth": 3,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 7,
        "initializer_range": 0.3,
    }
    return Qwen2VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": dict(MROPE)}, **QWEN_IDS)


def _qwen2_5() -> Qwen2_5_VLConfig:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 7,
        "window_size": 28,
        "fullatt_block_indexes": [2],
        "initializer_range": 0.3,
    }
    return Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": dict(MROPE)}, **QWEN_IDS)


def _qwen3() -> Qwen3VLConfig:
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 7,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 2],
        "initializer_range": 0.3,
    }
    text = {**TEXT, "head_dim": 8, "rope_parameters": dict(MROPE)}
    return Qwen3VLConfig(vision_config=vision, text_config=text, **QWEN_IDS)


def _internvl() -> InternVLConfig:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": [56, 56],
        "patch_size": [7, 7],
    }
    return InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=_token("<IMG_CONTEXT>"),
    )


def _gemma3() -> Gemma3Config:
    text = {**TEXT, "head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    return Gemma3Config(
        vision_config={**SIGLIP, "image_size": 56, "vision_use_head": False},
        text_config=text,
        tie_word_embeddings=False,
        mm_tokens_per_image=16,
        image_token_index=_token("<image_soft_token>"),
        boi_token_index=_token("<start_of_image>"),
        eoi_token_index=_token("<end_of_image>"),
    )


def _paligemma() -> PaliGemmaConfig:
    return PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 32, "vision_use_head": False},
        text_config={"model_type": "gemma", "head_dim": 8, **TEXT},
        projection_dim=32,
        image_token_index=_token("<image>"),
    )


def _tiles(config: Any) -> Any:
    vision = {key: value for key, value in CLIP.items() if key not in ("model_type", "projection_dim")}
    return config(
        vision_config={**vision, "initializer_range": 0.3},
        text_config={"model_type": "llama", **TEXT},
        scale_factor=2,
        image_token_id=_token("<image>"),
        pad_token_id=0,
    )


def _qwen_processor() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84}, patch_size=7)


TILES = {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 28}}
SQUARE = {"size": {"height": 28, "width": 28}, "crop_size": {"height": 28, "width": 28}}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TINY = {
    tiny.family: tiny
    for tiny in (
        Tiny(
            "llava",
            LlavaForConditionalGeneration,
            _llava,
            lambda: CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE["crop_size"]),
            "<image>",
            "<image>",
        ),
        Tiny(
            "llava_next",
            LlavaNextForConditionalGeneration,
            _llava_next,
            lambda: LlavaNextImageProcessorPil(
                size={"shortest_edge": 28}, crop_size=SQUARE["crop_size"], image_grid_pinpoints=PINPOINTS
            ),
            "<image>",
            "<image>",
        ),
        Tiny(
            "llava_onevision",
            LlavaOnevisionForConditionalGeneration,
            _onevision,
            lambda: LlavaOnevisionImageProcessorPil(size=SQUARE["size"], image_grid_pinpoints=PINPOINTS),
            "<image>",
            "<image>",
        ),
        Tiny("qwen2_vl", Qwen2VLForConditionalGeneration, _qwen2, _qwen_processor, QWEN_IMAGE, "<|image_pad|>"),
        Tiny("qwen2_5_vl", Qwen2_5_VLForConditionalGeneration, _qwen2_5, _qwen_processor, QWEN_IMAGE, "<|image_pad|>"),
        Tiny("qwen3_vl", Qwen3VLForConditionalGeneration, _qwen3, _qwen_processor, QWEN_IMAGE, "<|image_pad|>"),
        Tiny(
            "internvl",
            InternVLForConditionalGeneration,
            _internvl,
            lambda: GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=6),
            "<IMG_CONTEXT>",
            "<IMG_CONTEXT>",
            wrap="<img>{}</img>",
            call={"crop_to_patches": True},
        ),
        Tiny(
            "gemma3",
            Gemma3ForConditionalGeneration,
            _gemma3,
            lambda: Gemma3ImageProcessorPil(size={"height": 56, "width": 56}),
            "<start_of_image>",
            "<start_of_image>",
            wrap="\n\n<start_of_image>{}<end_of_image>\n\n",
            token="<image_soft_token>",
        ),
        Tiny(
            "paligemma",
            PaliGemmaForConditionalGeneration,
            _paligemma,
            lambda: SiglipImageProcessorPil(size=SQUARE["size"]),
            "<image>",
            "<image>",
            linear=True,
            has_template=False,
        ),
        Tiny(
            "idefics3",
            Idefics3ForConditionalGeneration,
            lambda: _tiles(Idefics3Config),
            lambda: Idefics3ImageProcessorPil(**TILES),
            "<image>",
            "<image>",
            linear=True,
        ),
        Tiny(
            "smolvlm",
            SmolVLMForConditionalGeneration,
            lambda: _tiles(SmolVLMConfig),
            lambda: SmolVLMImageProcessorPil(**TILES),
            "<image>",
            "<image>",
            linear=True,
        ),
    )
}


def _llava_siglip(strategy: str) -> LlavaConfig:
    return LlavaConfig(
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config={"model_type": "llama", **TEXT},
        image_token_index=_token("<image>"),
        vision_feature_select_strategy=strategy,
    )


# Other models of the same families, on which answers are compared as well.
MORE = {
    "llava-siglip-full": Tiny(
        "llava",
        LlavaForConditionalGeneration,
        lambda: _llava_siglip("full"),
        lambda: SiglipImageProcessorPil(size=SQUARE["size"]),
        "<image>",
        "<image>",
    ),
    "llava-siglip-default": Tiny(
        "llava",
        LlavaForConditionalGeneration,
        lambda: _llava_siglip("default"),
        lambda: SiglipImageProcessorPil(size=SQUARE["size"]),
        "<image>",
        "<image>",
    ),
    "llava-padded": Tiny(
        "llava",
        LlavaForConditionalGeneration,
        _llava,
        lambda: LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE["crop_size"], do_pad=True),
        "<image>",
        "<image>",
    ),
    "llava-two-layers": Tiny(
        "llava",
        LlavaForConditionalGeneration,
        lambda: LlavaConfig(
            vision_config=CLIP,
            text_config={"model_type": "llama", **TEXT},
            image_token_index=_token("<image>"),
            vision_feature_layer=[-2, -1],
        ),
        lambda: CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE["crop_size"]),
        "<image>",
        "<image>",
    ),
}


def tokenizer(image_text: str) -> PreTrainedTokenizerFast:
    """Whole words and special tokens; a chat template that writes `image_text` for an image."""
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[4:],
        chat_template=CHAT.format(image=image_text),
    )


def build(tiny: Tiny, folder: Path) -> Any:
    """Save the family's tiny checkpoint; returns the stock model."""
    torch.manual_seed(3)
    model = tiny.stock(tiny.config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and gains that a fresh model leaves at 0 and 1
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "multi_modal_projector" in name or "merger" in name or "connector" in name:
                parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
        if tiny.family == "gemma3":  # else a token outweighs what surrounds it, and repeats for ever
            model.get_input_embeddings().weight.mul_(0.03)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    words = tokenizer(tiny.image_text)
    if not tiny.has_template:
        words.chat_template = None
    words.save_pretrained(folder)
    return model
