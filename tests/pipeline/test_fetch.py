"""One pass over an image's bytes tells its hash, how many they are, and its size."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.corpus.fetch import Inspected, inspect


def noise(size: tuple[int, int], form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("size", [(30, 20), (900, 700)])
def test_whatever_the_image(form, size):
    data = noise(size, form)
    stream = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    assert inspect(stream) == Inspected(hashlib.sha256(data).hexdigest(), len(data), *size)


def test_a_header_behind_much_else_is_found():
    """Some cameras write megabytes of profiles before the size."""
    data = noise((30, 20), "JPEG")
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
    assert inspect(io.BytesIO(data[:2] + comment * 10 + data[2:])).width == 30


def test_what_is_no_image_has_a_hash_and_no_size():
    for data in (b"", b"no image", b"no image" * 100_000):
        assert inspect(io.BytesIO(data)) == Inspected(hashlib.sha256(data).hexdigest(), len(data), None, None)
