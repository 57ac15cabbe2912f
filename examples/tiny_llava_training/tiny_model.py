"""The architecture of the bundled model and what every training stage needs of it."""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from scenes import GRID, IMAGE_SIZE_PX, NUM_TOKENS, PATCH_SIZE_PX
from vocabulary import BOS_ID, EOS_ID, IMAGE_ID, PAD_ID, VOCABULARY

VISION_WIDTH, VISION_LAYERS = 128, 5
TEXT_WIDTH, TEXT_LAYERS = 128, 4
NUM_HEADS = 4
IMAGE_MEAN, IMAGE_STD = 0.46, 0.25
MAX_POSITIONS = 512
NUM_THREADS = 2


def build_config() -> LlavaConfig:
    """The configuration of the bundled checkpoint."""
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        projection_dim=VISION_WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=NUM_HEADS,
        image_size=IMAGE_SIZE_PX,
        patch_size=PATCH_SIZE_PX,
        hidden_act="quick_gelu",
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=TEXT_WIDTH,
        intermediate_size=352,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=NUM_TOKENS,
        tie_word_embeddings=False,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A fresh model; the tower's position embedding starts from two-dimensional sines."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config())
    quarter = VISION_WIDTH // 4
    frequency = 100.0 ** (-torch.arange(quarter) / quarter)
    angle = torch.arange(GRID)[:, None] * frequency
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = waves[:, None].expand(GRID, GRID, -1), waves[None].expand(GRID, GRID, -1)
    with torch.no_grad():
        table = model.model.vision_tower.embeddings.position_embedding.weight
        table[1:] = 0.25 * torch.cat([rows, columns], dim=-1).reshape(NUM_TOKENS, VISION_WIDTH)
    return model


def normalized_pixels(images: np.ndarray) -> torch.Tensor:
    """What the image processor makes of decoded 128 px images: uint8 (B, 128, 128, 3) to float32 (B, 3, 128, 128)."""
    return (torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - IMAGE_MEAN) / IMAGE_STD


def _matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as two batched products, twice as fast as the fused kernel in bfloat16 with gradients on CPU.

    query, key, value (B, H, T, D); attention_mask additive, broadcastable to (B, H, T, T); result (B, T, H, D).
    """
    batch, heads, length, width = query.shape
    flat = [part.reshape(batch * heads, length, width) for part in (query * scaling, key, value)]
    scores = torch.bmm(flat[0], flat[1].transpose(1, 2))
    if attention_mask is not None:
        scores = (scores.view(batch, heads, length, length) + attention_mask).view_as(scores)
    mixed = torch.bmm(scores.softmax(-1).to(flat[2].dtype), flat[2])
    return mixed.view(batch, heads, length, width).transpose(1, 2), None


def use_training_attention(module: nn.Module) -> None:
    """Makes a tower or language model train with batched products; the checkpoint is not affected."""
    AttentionInterface.register("batched_products", _matmul_attention)
    module.config._attn_implementation = "batched_products"


def patch_features(
    tower: nn.Module, pixels: torch.Tensor, kept: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tower up to `vision_feature_layer` -2, on all patches or only on those in `kept` (B, K).

    Returns the patches' features (B, 256 or K, 128) as the projector gets them, and all hidden states there, class
    token first.
    """
    hidden = tower.embeddings(pixels)
    if kept is not None:
        patches = hidden[:, 1:].gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))
        hidden = torch.cat([hidden[:, :1], patches], dim=1)
    hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden[:, 1:], hidden


def build_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, learning_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices, AdamW for embeddings, heads, norms and biases."""
    matrices, others = [], []
    for name, parameter in named_parameters:
        is_matrix = parameter.ndim == 2 and "embed" not in name and "head" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02),
    ]


def learning_rate_at(step: int, *, peak: float, num_steps: int, warmup_steps: int = 200) -> float:
    """Linear warm-up, a constant third, then a cosine down to 1 % of the peak."""
    done = step / num_steps
    decay = 1.0 if done < 0.3 else 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7)) * 0.99 + 0.01
    return peak * min(1.0, (step + 1) / warmup_steps) * decay


def batches(num_scenes: int, batch_size: int, *, seed: int, start_step: int, num_steps: int) -> Iterator[np.ndarray]:
    """Scene indices (batch_size,) of the steps from `start_step` on: shuffled epochs, a function of the step only."""
    per_epoch = num_scenes // batch_size
    order, epoch = np.empty(0, int), -1
    for step in range(start_step, num_steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng([seed, epoch]).permutation(num_scenes)
        offset = step % per_epoch * batch_size
        yield order[offset : offset + batch_size]


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, so that a resumed run draws the same ones."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def save_atomically(state: dict, path: Path) -> None:
    """Writes a checkpoint so that an interruption leaves the former one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def use_fixed_threads() -> None:
    """Fixes the thread count, which float sums depend on."""
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
