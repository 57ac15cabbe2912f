"""Images to pixels with the checkpoint's own image processor, whose work is done in two halves.

Decode tasks do the geometry (resize, crop, tile), so that pixels travel as uint8, to the device too. There a table
gives each of the 256 values of a channel what the processor's own arithmetic made of it. So both halves are the
processor's own methods, and together they give its bits.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint, Packed, UnusableImageError
from pipeline.families.loading import first_line
from zoo_ops import host_buffer, upload

MAX_RESIZED_PIXELS = 64 << 20  # of an image as its processor would resize it; beyond lie only absurd aspect ratios
MAX_PADDED_PIXELS = 178_956_970  # of an image padded to a square: as many as an image may have to be decoded


def image_processor(checkpoint: Checkpoint, kinds: Sequence[str]) -> Any:
    """The checkpoint's image processor, on the PIL backend whatever else is installed.

    Args:
        kinds: class names the family works with, without a backend's suffix.

    Raises:
        UserError: the folder holds no image processor, or one of another kind.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint.path, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise UserError(
            f"--model {checkpoint.name}: its image processor can't be used ({first_line(error)})"
        ) from error
    kind = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if kind not in kinds:
        raise UserError(
            f"--model {checkpoint.name}: its preprocessor_config.json asks for {kind}, but a "
            f"{checkpoint.config.model_type} model takes {' or '.join(kinds)}; is it the file of another checkpoint?"
        )
    return processor


class UintPreparer:
    """Does to an image every step of the processor but rescaling and normalising."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        kinds: Sequence[str],
        *,
        an_entry_each: bool = True,
        num_tiles: Callable[[Any, int, int], int] = lambda _processor, _width, _height: 1,
        **options: Any,
    ) -> None:
        """Load the processor.

        Args:
            kinds: see `image_processor`.
            an_entry_each: the processor's pixel values have one entry an image; else they are the image's tiles.
            num_tiles: (processor, width, height of an image) -> how many tiles it makes of it, the overview included.
            options: for the processor's call.
        """
        self._num_tiles = num_tiles
        self._processor = image_processor(checkpoint, kinds)
        self._an_entry_each = an_entry_each
        self._options = options

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Pixels as uint8: (3, height, width), or (tiles, 3, height, width) where the processor makes tiles."""
        check_resized_size(self._processor, image)
        try:
            pixels = self._processor(image, do_rescale=False, do_normalize=False, return_tensors="np", **self._options)[
                "pixel_values"
            ]
        except (ValueError, ZeroDivisionError) as error:
            raise unusable(image, error) from error
        if self._an_entry_each:
            pixels = pixels[0]
        assert pixels.dtype == np.uint8, f"{type(self._processor).__name__} gave {pixels.dtype} for uint8"
        return pixels

    def prepared_bytes(self, width: int, height: int) -> int:
        """How many bytes `prepare` makes of an image of this size."""
        return self._num_tiles(self._processor, width, height) * self._tile_bytes

    @cached_property
    def _tile_bytes(self) -> int:
        return tile_bytes(self.prepare)


def tile_bytes(prepare: Callable[[Image.Image], np.ndarray]) -> int:
    """The bytes of one tile, of which those of every image have the same shape (..., 3, height, width)."""
    return math.prod(prepare(Image.new("RGB", (32, 32))).shape[-3:])


def check_resized_size(processor: Any, image: Image.Image) -> None:
    """Refuse an image that would grow out of bounds on its way to the processor's size.

    Raises:
        UnusableImageError: it would have more than `MAX_RESIZED_PIXELS` when its shortest edge has the processor's
            size, or more than `MAX_PADDED_PIXELS` when it is padded to a square.
    """
    if isinstance(processor, LlavaImageProcessorPil) and processor.do_pad:
        if max(image.size) ** 2 > MAX_PADDED_PIXELS:
            raise UnusableImageError(
                f"an image of {image.width} x {image.height} would be padded to {max(image.size) ** 2:,} pixels; "
                f"at most {MAX_PADDED_PIXELS:,} are worked on"
            )
        return
    short = processor.size.get("shortest_edge") if processor.size else None
    if not short or processor.size.get("longest_edge"):
        return
    pixels = short * short * max(image.size) // min(image.size)
    if pixels > MAX_RESIZED_PIXELS:
        raise UnusableImageError(
            f"an image of {image.width} x {image.height} would be resized to {pixels:,} pixels; "
            f"at most {MAX_RESIZED_PIXELS:,} are worked on"
        )


def unusable(image: Image.Image, error: Exception) -> UnusableImageError:
    """What to raise when the processor refuses the image."""
    return UnusableImageError(
        f"the image processor refuses an image of {image.width} x {image.height} ({first_line(error)})"
    )


def normalised(processor: Any, pixels: np.ndarray) -> Tensor:
    """Rescale and normalise the uint8 pixels (3, height, width) of a tile as the processor does."""
    tile = pixels
    if processor.do_rescale:
        tile = processor.rescale(tile, processor.rescale_factor)
    if processor.do_normalize:
        tile = processor.normalize(tile, processor.image_mean, processor.image_std)
    return torch.from_numpy(np.ascontiguousarray(tile, dtype=np.float32))


class NormalisingTable:
    """What a processor's rescaling and normalising make of the 256 values of each channel, on a device."""

    def __init__(self, processor: Any, device: torch.device, dtype: torch.dtype) -> None:
        values = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (3, 16, 16))
        self._values = upload(normalised(processor, values).flatten().to(dtype), device)
        self._begin_of_channel = upload(torch.tensor([0, 256, 512], dtype=torch.int32), device)

    def __call__(self, pixels: Tensor, channel_axis: int) -> Tensor:
        """The model's input of uint8 pixels, on the table's device and in its dtype, in the shape of the pixels."""
        begins = self._begin_of_channel.view(3, *[1] * (pixels.dim() - 1 - channel_axis))
        return self._values.index_select(0, (pixels + begins).flatten()).view(pixels.shape)


class TilePacker:
    """Tiles of images, packed in uint8 and normalised on the device."""

    def __init__(self, processor: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._table = NormalisingTable(processor, device, dtype)

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """See `Encoder.pack`: images (3, height, width) or (tiles, 3, height, width), all tiles of one size."""
        tiles = [image if image.ndim == 4 else image[None] for image in pixels]
        shapes = [image.shape for image in tiles]
        buffer = host_buffer((sum(shape[0] for shape in shapes), *shapes[0][1:]), torch.uint8, self._device)
        np.concatenate(tiles, out=buffer.numpy())
        return Packed(buffer, shapes, list(sizes))

    def inputs(self, packed: Packed) -> Tensor:
        """The tower's input (tiles, 3, height, width) on the device."""
        return self._table(upload(packed.pixels, self._device), 1)
