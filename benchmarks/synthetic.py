"""Corpora made from a seed, for benchmarks and fault tests: textured JPEGs in WebDataset tars, two prompts an image."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE_PX = 128
DAMAGED = 37  # where damaged images are asked for, every 37th one is
REPEATED = 53  # and every 53rd sample repeats the bytes of the one before


def textured(seed: int, number: int) -> np.ndarray:
    """A random smooth image with grain, uint8 (128, 128, 3): about 5 kB as JPEG, like a photograph's thumbnail."""
    generator = np.random.default_rng((seed, number))
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), np.int16)
    grain = generator.integers(-12, 13, (SIZE_PX, SIZE_PX, 1), dtype=np.int16)
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


def jpeg_of(seed: int, number: int) -> bytes:
    """JPEG bytes of `textured`."""
    stream = io.BytesIO()
    Image.fromarray(textured(seed, number)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def make_corpus(
    folder: Path, images: int, *, seed: int = 0, samples_per_tar: int = 1000, with_faults: bool = False
) -> str:
    """Write `images` samples into tars under `folder`; the same arguments give the same bytes.

    Args:
        folder: made if need be; a tar that is there already is kept.
        images: samples in all.
        seed: of the textures.
        samples_per_tar: samples a tar.
        with_faults: every 37th image is cut short and every 53rd sample repeats the image before it.

    Returns:
        The `--corpus` pattern.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for tar, begin in enumerate(range(0, images, samples_per_tar)):
        path = folder / f"made-{tar:06d}.tar"
        if path.exists():
            continue
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w") as archive:
            for number in range(begin, min(begin + samples_per_tar, images)):
                repeated = with_faults and number % REPEATED == REPEATED - 1
                data = jpeg_of(seed, number - 1 if repeated else number)
                if with_faults and number % DAMAGED == DAMAGED - 1:
                    data = data[: len(data) // 3]
                prompts = [
                    {"id": f"{number:08d}-{which}", "prompt": text}
                    for which, text in enumerate(("how many circles ?", "what is left of the square ?"))
                ]
                _add(archive, f"{number:08d}.jpg", data)
                _add(archive, f"{number:08d}.json", json.dumps({"prompts": prompts}).encode())
        partial.rename(path)
    return str(folder / "made-*.tar")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
