"""What a model family must provide: three small roles, each of which loads only its own part of a checkpoint.

    Preparer   CPU, in decode tasks   PIL image -> the uint8 pixels that the model's own processor would keep
    Encoder    model actor            pixels -> per-image tokens at the projector's input and output
    Answerer   model actor            stored kept features -> what `generate` needs, without any vision weight
    Prompter   any process            the same without the language model: for engines that have their own

Axes: `N` visual tokens of an image, `K` kept tokens, `S` structure tokens, `D` projector input width, `O`
language-model width. The packed sequence of an image is what the language model sees: N visual tokens with the S
structure tokens (newlines) between them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schemas.stored import StoredSelection
from zoo_ops import ProjectorSpec

# What the centred selectors compare: the projected features, or the tower's before the merger, averaged over the
# patches of a token, which then are standardized.
Centring = Literal["projected", "patches"]


@dataclass(frozen=True)
class Segment:
    """A run of the visual tokens, from token `first` on, that is a raster of rows x cols.

    (row, col) is where it begins in the grid of the whole image. An overview of the image has a grid of its own, so it
    begins at (0, 0). A raster that covers several tiles also says how large the tiles are, how many of them lie side
    by side, and how many rows above the raster and columns left of it were padding; `tile` is then the first of them.
    """

    first: int
    tile: int
    rows: int
    cols: int
    row: int = 0
    col: int = 0
    tile_rows: int = 0  # 0: the whole raster is one tile
    tile_cols: int = 0
    tiles_across: int = 1
    top: int = 0
    left: int = 0

    def places(self) -> Tensor:
        """Tile, row and column (rows * cols, 3) of the tokens of this run, int64."""
        row, col = torch.meshgrid(torch.arange(self.rows), torch.arange(self.cols), indexing="ij")
        tile = torch.full_like(row, self.tile)
        if self.tile_rows:
            tile += (row + self.top) // self.tile_rows * self.tiles_across + (col + self.left) // self.tile_cols
        return torch.stack([tile, self.row + row, self.col + col], dim=-1).flatten(0, 1)


@dataclass(frozen=True)
class EncodedImage:
    """One image as the language model would see it before pruning, without its structure tokens (newlines)."""

    features_ND: Tensor  # projector input
    projected_NO: Tensor  # projector output, in the model's dtype
    segments: Sequence[Segment]  # cover all N tokens, in order
    grid: tuple[int, int, int]  # rows, cols, tiles
    groups_N: Tensor | None = None  # on the CPU; tokens are ranked within their group (tile); None: one group
    structure: Sequence[int] = ()  # places of the structure tokens in the packed sequence of N + S
    image_grid_thw: tuple[int, int, int] | None = None  # patches before merging, as Qwen-VL counts them
    extras_NO: Mapping[str, Tensor] = field(default_factory=dict)  # further rows per token, stored under their name
    class_attention: Callable[[], Tensor] | None = None  # () -> (N,), what the class token pays; None: there is none

    @property
    def num_tokens(self) -> int:
        """N."""
        return sum(segment.rows * segment.cols for segment in self.segments)

    def without_rows(self) -> "EncodedImage":
        """What is known of the image on the host, without the rows that take the device's memory."""
        no_rows = torch.empty(self.num_tokens, 0)
        return replace(self, features_ND=no_rows, projected_NO=no_rows, extras_NO={}, class_attention=None)

    def places(self) -> Tensor:
        """Tile, row and column (N, 3) of every token, int64."""
        return torch.cat([segment.places() for segment in self.segments])


@dataclass(frozen=True)
class KeptImage:
    """One stored image at one budget. Its tokens are in raster order."""

    image_id: str
    selection: StoredSelection  # what its row of the selections table says about its tokens
    indices_K: Tensor  # int64, ascending
    features_KO: Tensor
    extras_KO: Mapping[str, Tensor]


class Preparer(Protocol):
    """Makes pixels of images. It is built as `Preparer(checkpoint)`."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The uint8 pixels the encoder takes. Raises `UnusableImageError` where the family can't take the image."""

    def prepared_bytes(self, width: int, height: int) -> int:
        """How many bytes `prepare` makes of an image of this size; some number where it refuses such an image."""


@dataclass(frozen=True)
class Packed:
    """Prepared images of a batch, one behind the other: what is brought to the device to encode them."""

    pixels: Tensor  # uint8 on the host, all tiles or patches of all images
    shapes: Sequence[tuple[int, ...]]  # of what each image brought: (tiles, 3, height, width), or as the family says
    sizes: Sequence[tuple[int, int]]  # height and width of each image before preparation
    facts: Mapping[str, Tensor] = field(default_factory=dict)  # what else the family's tower must be told, on the host


class Encoder(Protocol):
    """Makes tokens of pixels.

    Built as `Encoder(checkpoint, device, dtype)`, it holds vision tower and projector only.
    """

    projector: ProjectorSpec

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """Lay prepared images side by side. It leaves the device alone, so a thread may do it while a batch computes.

        Args:
            pixels: prepared images.
            sizes: their height and width before preparation.
        """

    def encode(self, packed: Packed) -> list[EncodedImage]:
        """Encode a batch; nothing in it waits for the device but what the stock tower itself waits for."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says in a conversation."""

    role: str  # "system", "user" or "assistant"
    text: str


Posed = str | tuple[Turn, ...]  # what is asked: the user's words, or a conversation that ends with them


class Prompter(Protocol):
    """Makes of a prompt and a kept image what any engine poses: token ids, and rows for those of the image.

    An `Answerer` that was built with `language=False` is one: it holds the tokenizer and, where the family puts rows
    of its own between those of the image, their weights.
    """

    tokenizer: Any  # a Transformers tokenizer
    image_token_id: int
    context: int | None  # tokens that the language model was made for; None: its config names no limit
    width: int  # numbers in a row of `image_embeds`

    def render(self, prompt: Posed) -> str:
        """The text of a prompt, with one image placeholder. Raises `UnusablePromptError`."""

    def messages(self, prompt: Posed) -> list[dict[str, Any]]:
        """The prompt as the messages of a chat request, with a part `{"type": "image"}` where the image goes."""

    def token_ids(self, prompt: Posed, image: KeptImage) -> list[int]:
        """The full prompt, an image token for every kept and structure token. Raises `UnusablePromptError`."""

    def image_embeds(self, image: KeptImage) -> dict[str, Tensor]:
        """What an engine outside of this process is given of an image.

        `image_embeds` (K + S, width) holds a row for every image token of `token_ids`, in their order, in the dtype
        and on the device that this was built with. The families on a grid add where the rows lie.
        """


class Answerer(Prompter, Protocol):
    """Makes of a prompt and a kept image what `generate` needs.

    Built as `Answerer(checkpoint, device, dtype, positions)`, it holds tokenizer and language model only.
    """

    model: Any  # a Transformers model with `generate`
    shares_beginnings: bool  # one pass over a prompt's beginning, image included, can serve all prompts about it
    takes_padding: bool  # prompts of different length can run beside each other; else each runs alone

    def image_inputs(self, images: Sequence[KeptImage], input_ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
        """Keyword arguments of `generate` that carry the images; each row of the batch has one image."""


@dataclass(frozen=True)
class Family:
    """One model family: its roles, and what can be known of it before any weight is read."""

    name: str
    preparer: Callable[["Checkpoint"], Preparer]
    encoder: Callable[["Checkpoint", torch.device, torch.dtype], Encoder]
    # (checkpoint, device, dtype, positions=None, *, language=True): None is the first of `positions`.
    answerer: Callable[..., Answerer]
    projector: Callable[[Any], ProjectorSpec]  # config -> the projector's form, on no device; its weights mean nothing
    projector_weights: str  # regular expression over checkpoint tensor names
    positions: tuple[str, ...] = ("compact", "original")  # how kept tokens may be numbered; the first is the default
    refusal: Callable[[Any], str | None] = lambda _config: None  # why this config can't be handled, None if it can
    # Why images of this config's model have no `class_attention`, None if they have.
    attention_refusal: Callable[[Any], str | None] = lambda config: no_class_token(config)
    centring: Centring = "projected"


def no_class_token(config: Any) -> str:
    """Why the attention of a class token can't be had of a tower that is no CLIP tower."""
    tower = config.vision_config.model_type
    return f"it takes the attention of a CLIP tower's class token, and the model's vision tower is a {tower}"


class UnusableImageError(Exception):
    """The family can't encode this image, which becomes a row of the errors table."""


class UnusablePromptError(Exception):
    """The family can't pose this prompt, which is refused with this message in place of an answer."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk."""

    path: Path
    name: str  # as the user gave it
    config: Any  # its Transformers config
    revision: str | None = None  # the hub's commit, where the hub gave it
    address: str | None = None  # that it was fetched from, where it lies in an object store

    @property
    def pinned(self) -> str:
        """The name under which a worker on any node opens these files: their folder or address, or the hub's commit."""
        if self.address is not None:
            return self.address
        return str(self.path) if self.revision is None else f"{self.name.partition('@')[0]}@{self.revision}"


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name such as `float32`."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype {name!r} is no floating dtype of torch; use float32, float16 or bfloat16")
    return dtype
