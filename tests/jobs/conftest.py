"""The bundled corpus's pictures, read and decoded without the pipeline."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

SCENES = Path(__file__).resolve().parents[2] / "examples" / "scenes"


@pytest.fixture(scope="session")
def raw_images() -> dict[str, Image.Image]:
    """image_id -> picture, of every image that Pillow decodes."""
    images = {}
    for path in sorted(SCENES.glob("scenes-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    continue
                data = archive.extractfile(member).read()  # type: ignore[union-attr]
                try:
                    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
                except (UnidentifiedImageError, OSError):
                    continue
                images[hashlib.sha256(data).hexdigest()] = image
    return images
