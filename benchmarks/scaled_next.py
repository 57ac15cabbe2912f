"""LLaVA-NeXT-7B made smaller, every cost by the same factor: its arithmetic, a checkpoint of random weights, a corpus.

Widths and numbers of layers are divided by a divisor d, and MLPs made wider, so that by d squared

    the products of a tower layer, of the projector and of a language-model layer, summed over the layers,
    the attention's scores and sums (tokens squared x width x layers), and
    the key-value cache (width x layers), against the weights that a step of decoding reads,

are all divided alike: tower : projector : language model, and the share of attention in each, stay as they are. In a
narrow model with MLPs of the usual shape attention has a larger share: at d = 8 its weight would be eightfold.

What is not divided alike: element-wise work (by less, so that it takes a larger share), and what is outside of the
model, decoding and resizing a picture (not at all).
"""

import io
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from benchmarks.synthetic import textured

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:")

SHARPNESS = 3.0  # of the language model's attention


@dataclass(frozen=True)
class Dims:
    """What decides the cost of a LLaVA-NeXT, and its geometry."""

    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int
    vocabulary: int
    tile: int = 336  # pixels of a side
    patch: int = 14
    tiles: int = 5  # of an image of two by two tiles, with its overview

    @property
    def side(self) -> int:
        """Tokens of a side of a tile."""
        return self.tile // self.patch

    @property
    def visual_tokens(self) -> int:
        """Of an image."""
        return self.tiles * self.side**2

    @property
    def newlines(self) -> int:
        """Of an image: one behind every row of its two by two tiles."""
        return 2 * self.side

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height of an image of so many tiles, which fills them."""
        return 2 * self.tile, 2 * self.tile

    def tower_flops(self) -> dict[str, int]:
        """Of one image, products and attention apart."""
        tokens, width = self.side**2 + 1, self.vision_width
        patches = 2 * self.side**2 * 3 * self.patch**2 * width
        layer = 2 * tokens * (4 * width**2 + 2 * width * self.vision_mlp)
        attention = 4 * tokens**2 * width
        return {
            "products": self.tiles * (patches + self.vision_layers * layer),
            "attention": self.tiles * self.vision_layers * attention,
        }

    def projector_flops(self) -> int:
        """Of one token."""
        return 2 * (self.vision_width * self.text_width + self.text_width**2)

    def text_flops(self) -> int:
        """Of one token in all layers of the language model, attention to other tokens left out."""
        width = self.text_width
        return 2 * self.text_layers * (4 * width**2 + 3 * width * self.text_mlp)

    def attention_flops(self, pairs: float) -> float:
        """Of so many pairs of a token and one that it attends to, in all layers of the language model."""
        return 4 * self.text_width * self.text_layers * pairs

    def reading_flops(self, tokens: int, behind: int = 0) -> float:
        """Of the language model: to read so many tokens behind others that were read, and to predict one."""
        pairs = tokens * behind + tokens * (tokens + 1) / 2
        head = 2 * self.text_width * self.vocabulary
        return tokens * self.text_flops() + self.attention_flops(pairs) + head

    def writing_flops(self, tokens: int, behind: int) -> float:
        """Of the language model: to generate so many tokens after a prompt, beyond the first, which reading gave."""
        return sum(self.reading_flops(1, behind + n) for n in range(tokens - 1))

    def text_weights(self) -> int:
        """Numbers that a step of decoding reads of the language model."""
        return self.text_flops() // 2 + self.text_width * self.vocabulary

    def cache_numbers(self) -> int:
        """Numbers of the key-value cache of one token."""
        return 2 * self.text_width * self.text_layers

    def smaller(self, divisor: int) -> "Dims":
        """These, every cost divided by the divisor squared."""
        vision, text = self.vision_width // divisor, self.text_width // divisor
        layers = self.vision_layers // divisor, self.text_layers // divisor
        square = divisor**2
        of_tower = self.vision_layers * (4 * self.vision_width**2 + 2 * self.vision_width * self.vision_mlp)
        return Dims(
            vision_width=vision,
            vision_layers=layers[0],
            vision_heads=self.vision_heads // divisor,
            vision_mlp=round((of_tower / square / layers[0] - 4 * vision**2) / (2 * vision)),
            text_width=text,
            text_layers=layers[1],
            text_heads=self.text_heads // divisor,
            text_mlp=round((self.text_flops() / 2 / square / layers[1] - 4 * text**2) / (3 * text)),
            vocabulary=self.vocabulary // divisor,
            tile=self.tile,
            patch=self.patch,
            tiles=self.tiles,
        )


# llava-hf/llava-v1.6-vicuna-7b-hf: CLIP-L/14-336, two linear layers, Vicuna-7B.
ORIGINAL = Dims(1024, 24, 16, 4096, 4096, 32, 32, 11008, 32064)
SCALED = ORIGINAL.smaller(8)
TINY = Dims(32, 3, 2, 64, 64, 2, 2, 128, 256, tile=28, patch=7)


def arithmetic(dims: Dims, text_tokens: int) -> dict[str, Any]:
    """Operations of an image and of a token, and what the parts are to each other, for a prompt with a whole image."""
    tower, prompt = dims.tower_flops(), dims.visual_tokens + dims.newlines + text_tokens
    reading = dims.reading_flops(prompt)
    return {
        "dims": asdict(dims),
        "tower_gflop_an_image": sum(tower.values()) / 1e9,
        "tower_attention_share": tower["attention"] / sum(tower.values()),
        "projector_gflop_an_image": dims.projector_flops() * dims.visual_tokens / 1e9,
        "text_gflop_a_token": dims.text_flops() / 1e9,
        "prompt_tokens": prompt,
        "reading_gflop_a_prompt": reading / 1e9,
        "text_attention_share": dims.attention_flops(prompt * (prompt + 1) / 2) / reading,
        "tower_per_reading": sum(tower.values()) / reading,
        "projector_per_reading": dims.projector_flops() * dims.visual_tokens / reading,
        "cache_of_a_prompt_per_weights": dims.cache_numbers() * prompt / dims.text_weights(),
    }


def _config(dims: Dims) -> LlavaNextConfig:
    side = dims.tile
    return LlavaNextConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": dims.vision_width,
            "intermediate_size": dims.vision_mlp,
            "num_hidden_layers": dims.vision_layers,
            "num_attention_heads": dims.vision_heads,
            "image_size": side,
            "patch_size": dims.patch,
            "projection_dim": dims.vision_width,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": dims.text_width,
            "intermediate_size": dims.text_mlp,
            "num_hidden_layers": dims.text_layers,
            "num_attention_heads": dims.text_heads,
            "num_key_value_heads": dims.text_heads,
            "vocab_size": dims.vocabulary,
            "max_position_embeddings": 4096,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        image_token_index=SPECIAL.index("<image>"),
        image_grid_pinpoints=[[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side]],
    )


def words_of(dims: Dims) -> list[str]:
    """The words that the model's tokenizer knows."""
    return [f"w{number}" for number in range(dims.vocabulary - len(SPECIAL))]


@torch.no_grad()
def save_model(folder: Path, dims: Dims) -> str:
    """Write a checkpoint of random weights, the same every time, whose answers have no end of their own.

    Every matrix keeps the size of what it is given (deviation 1 / sqrt(inputs)), so that all layers, and with them the
    image, have a say in every answer. Queries of the language model are larger: it attends to some tokens, not evenly
    to all, and so the few of the prompt have a say too.
    """
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(_config(dims))
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" not in name:
            weight.normal_(
                0.0, (SHARPNESS if "language_model" in name and "q_proj" in name else 1.0) * weight[0].numel() ** -0.5
            )
        elif "embed" in name or "image_newline" in name:
            weight.normal_(0.0, 1.0)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    LlavaNextImageProcessorPil(
        size={"shortest_edge": dims.tile},
        crop_size={"height": dims.tile, "width": dims.tile},
        image_grid_pinpoints=model.config.image_grid_pinpoints,
    ).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words_of(dims)))}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def save_corpus(folder: Path, dims: Dims, images: int, prompts_an_image: int, words_a_prompt: int) -> Path:
    """Write pictures that fill two by two tiles and a manifest with prompts of the same length; returns the manifest.

    The first pictures and prompts are the same however many there are.
    """
    folder.mkdir(parents=True)
    words, lines = words_of(dims), []
    for number in range(images):
        stream = io.BytesIO()
        Image.fromarray(textured(0, number)).resize(dims.picture, Image.Resampling.BICUBIC).save(stream, "JPEG")
        (folder / f"{number:04d}.jpg").write_bytes(stream.getvalue())
        choose = random.Random(number)
        texts = [" ".join(choose.choices(words, k=words_a_prompt)) for _ in range(prompts_an_image)]
        prompts = [{"id": f"{number:04d}-{place}", "prompt": text} for place, text in enumerate(texts)]
        lines.append(json.dumps({"image": f"{number:04d}.jpg", "prompts": prompts}))
    manifest = folder / "prompts.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
