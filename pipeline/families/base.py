"""What a model family must provide: three small roles, each loading only its part of a checkpoint.

    Preparer   CPU, in decode tasks   PIL image -> the uint8 pixels that the model's own processor would keep
    Encoder    model actor            pixels -> per-image tokens at the projector's input and output
    Answerer   model actor            stored kept features -> what `generate` needs, without any vision weight

Axes: `N` visual tokens of an image, `K` kept tokens, `D` projector input width, `O` language-model width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo_ops import ProjectorSpec


@dataclass(frozen=True)
class Segment:
    """A run of the packed visual sequence that is a raster of rows x cols, starting at token `first`."""

    first: int
    tile: int
    rows: int
    cols: int


@dataclass(frozen=True)
class EncodedImage:
    """One image as the language model would see it before pruning; structure tokens (newlines) excluded."""

    features_ND: Tensor  # projector input
    projected_NO: Tensor  # projector output, in the model's dtype
    segments: Sequence[Segment]  # cover all N tokens, in order
    grid: tuple[int, int, int]  # rows, cols, tiles
    groups_N: Tensor | None = None  # tokens are ranked within their group (tile); None: one group
    num_structure: int = 0
    extras_NO: Mapping[str, Tensor] = field(default_factory=dict)  # further rows per token, stored under their name


@dataclass(frozen=True)
class KeptImage:
    """One stored image at one budget, tokens in raster order."""

    image_id: str
    selection: Mapping[str, Any]  # its row of the selections table
    indices_K: Tensor  # int64, ascending
    features_KO: Tensor
    extras_KO: Mapping[str, Tensor]


class Preparer(Protocol):
    """Built as `Preparer(checkpoint)`."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The uint8 pixels the encoder takes. Raises `UnusableImageError` where the family can't take the image."""


class Encoder(Protocol):
    """Built as `Encoder(checkpoint, device, dtype)`; holds vision tower and projector only."""

    projector: ProjectorSpec

    def encode(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[EncodedImage]:
        """Encode prepared images; `sizes` are (height, width) of the decoded images."""


class Answerer(Protocol):
    """Built as `Answerer(checkpoint, device, dtype)`; holds tokenizer and language model only."""

    tokenizer: Any  # a Transformers tokenizer
    model: Any  # a Transformers model with `generate`
    image_token_id: int

    def render(self, prompt: str) -> str:
        """The full prompt text with exactly one image placeholder. Raises `UnusablePromptError`."""

    def num_image_tokens(self, image: KeptImage) -> int:
        """Placeholders the image takes in the prompt: kept tokens plus structure."""

    def image_inputs(self, images: Sequence[KeptImage], input_ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
        """Keyword arguments of `generate` that carry the images, one image a row."""


@dataclass(frozen=True)
class Family:
    """One model family: its roles, and which checkpoint tensors make up its projector."""

    name: str
    preparer: Callable[["Checkpoint"], Preparer]
    encoder: Callable[["Checkpoint", torch.device, torch.dtype], Encoder]
    answerer: Callable[["Checkpoint", torch.device, torch.dtype], Answerer]
    projector_weights: str  # regular expression over checkpoint tensor names


class UnusableImageError(Exception):
    """The family can't encode this image; becomes an errors row."""


class UnusablePromptError(Exception):
    """The family can't pose this prompt; becomes the prompt's status."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk."""

    path: Path
    name: str  # as the user gave it
    config: Any  # its Transformers config


def torch_dtype(name: str) -> torch.dtype:
    """`"float32"` and the like as a torch dtype."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype {name!r} is no floating dtype of torch; use float32, float16 or bfloat16")
    return dtype
