"""Encoded bytes to RGB: EXIF transposed, 8 bits a channel, bombs refused. Never trusts a name or an extension."""

import io
import struct
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb, twice its warning

# What Pillow's decoders raise on malformed data, apart from OSError (truncated files) and its own errors.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
)


class DecodeError(Exception):
    """The bytes are no image we can use. `reason` is the word in the errors table."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as Transformers' own loader would give it: first frame, upright, Pillow's RGB (alpha dropped).

    Grey images of 9 to 16 bits are the one difference. They are scaled to 8 bits by their high bits, as Pillow reads
    16-bit colour; its conversion of grey would make white of all but the darkest 256 of 65,536 levels.

    Raises:
        DecodeError: `empty_file`, `unreadable_image` or `decompression_bomb`.
        MemoryError: the process has not enough; that says nothing about the image.
    """
    if not data:
        raise DecodeError("empty_file", "the file has no bytes")
    Image.init()  # a format named to `open` must have its plugin loaded; does nothing the second time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise DecodeError(
                        "decompression_bomb",
                        f"{image.width} x {image.height} pixels in {len(data)} bytes; at most {max_pixels} are decoded",
                    )
                image.load()
                bits = _deep_grey_bits(image)
                return _to_rgb(ImageOps.exif_transpose(image), bits)
    except Image.DecompressionBombError as error:
        raise DecodeError("decompression_bomb", str(error)) from error
    except UnidentifiedImageError as error:
        raise DecodeError("unreadable_image", f"no image format is recognised in its {len(data)} bytes") from error
    except _DECODER_ERRORS as error:
        raise DecodeError("unreadable_image", f"{type(error).__name__}: {error}") from error


def image_size(stream: BinaryIO) -> tuple[int, int] | None:
    """Width and height that an image's header names; nothing is decoded and no orientation is applied.

    None where there is no such header, or where `decode_image` refuses it for what it names.
    """
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(stream, formats=FORMATS).size
    except (Image.DecompressionBombError, UnidentifiedImageError, MemoryError, *_DECODER_ERRORS):
        return None
    return (width, height) if 0 < width * height <= MAX_PIXELS else None


def _deep_grey_bits(image: Image.Image) -> int | None:
    """How many bits a sample of a grey image of 9 to 16 unsigned bits has; None for every other image."""
    if image.format == "PPM" and image.mode == "I":
        return 16  # whatever its largest value is, Pillow scales it to 65,535
    if not image.mode.startswith("I;16"):
        return None
    return int(image.tag_v2.get(258, (16,))[0]) if isinstance(image, TiffImageFile) else 16


def _to_rgb(image: Image.Image, deep_grey_bits: int | None) -> Image.Image:
    if deep_grey_bits is None:
        return image.convert("RGB")
    values = np.asarray(image).astype(np.uint16) >> (deep_grey_bits - 8)
    return Image.fromarray(np.minimum(values, 255).astype(np.uint8)).convert("RGB")
