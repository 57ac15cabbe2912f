"""What an image's prepared pixels will take is known from its size alone."""

import pytest
from PIL import Image

from tests.families.conftest import SIZES
from tests.families.models import TINY


@pytest.mark.parametrize("family", TINY)
def test_they_are_what_preparing_makes(case, family):
    checkpoint, loaded = case(family).opened
    preparer = loaded.preparer(checkpoint)
    sizes = [*SIZES, *((height, width) for width, height in SIZES), (1, 1), (40, 600), (500, 400), (997, 1009)]
    made = {size: preparer.prepare(Image.new("RGB", size)).nbytes for size in sizes if family_takes(family, size)}
    assert {size: preparer.prepared_bytes(*size) for size in made} == made


def family_takes(family: str, size: tuple[int, int]) -> bool:
    return not (family.startswith("qwen") and max(size) > 200 * min(size))
