"""200 malformed images through the whole job: each a correct decode or one row of `errors` with its reason."""

import io
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from fault_tools import rows_of
from malformed_images import COUNT, malformed_images
from PIL import Image, ImageOps, PngImagePlugin

REASONS = {"empty_file", "unreadable_image", "decompression_bomb", "unusable_image"}
BOMBS = ("bomb-20000.png", "declares-60000.png", "declares-2-31.png", "declares-65500.jpg", "declares-65535.gif")
BOMB_PIXELS = 178_956_970
RESIZED_PIXELS = 64 << 20
SHORTEST_EDGE = 128


def decoded_independently(data: bytes) -> np.ndarray | None:
    """The README's rules with Pillow alone: first frame, upright, RGB, 16-bit grey scaled; None where it gives up."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"))
            if image.width * image.height > BOMB_PIXELS:
                return None
            image.load()
            image = ImageOps.exif_transpose(image)
    except Exception:  # whatever Pillow raises: it gives up
        return None
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def is_too_thin(pixels: np.ndarray) -> bool:
    """Scaling its shortest edge to the model's size gives more pixels than are worked on."""
    height, width = pixels.shape[:2]
    return SHORTEST_EDGE**2 * max(height, width) / min(height, width) > RESIZED_PIXELS


@pytest.fixture(scope="module")
def clip_model(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundled model with CLIP's published geometry: shortest edge to the model's size, then a centre crop."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    shutil.copytree(tiny_llava, folder)
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"].update(size={"shortest_edge": SHORTEST_EDGE}, do_center_crop=True)
    file.write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def write_manifest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, bytes]], str]:
    def write(files: dict[str, bytes]) -> str:
        folder = tmp_path_factory.mktemp("images")
        for name, data in files.items():
            (folder / name).write_bytes(data)
        lines = [json.dumps({"image": name, "prompts": [f"what is {name} ?"]}) for name in files]
        (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
        return str(folder / "corpus.jsonl")

    return write


def test_each_of_200_is_decoded_right_or_reported(prune, clip_model, write_manifest, tmp_path):
    files = malformed_images()
    pixels = {name: decoded_independently(data) for name, data in files.items()}
    fine = [name for name in files if pixels[name] is not None and not is_too_thin(pixels[name])]
    thin = [name for name in files if pixels[name] is not None and is_too_thin(pixels[name])]
    assert len(fine) > 40
    assert len(thin) >= 3

    options = {"model": clip_model, "max_tokens": "16", "shard_size": COUNT, "features": "parquet"}
    output = tmp_path / "malformed"
    prune(output, corpus=(write_manifest(files),), **options, max_error_rate=1.0)
    selections, errors = rows_of(output, "selections"), rows_of(output, "errors")
    name_of = {row["source"]: row["source"].partition("/")[2] for row in selections + errors}
    assert [name_of[row["source"]] for row in selections] == fine
    assert {name_of[row["source"]]: (row["width"], row["height"]) for row in selections} == {
        name: (pixels[name].shape[1], pixels[name].shape[0]) for name in fine
    }
    assert sorted(name_of[row["source"]] for row in errors) == sorted(set(files) - set(fine))
    assert {row["reason"] for row in errors} == REASONS
    assert all(row["message"] for row in errors)
    reason_of = {name_of[row["source"]]: row["reason"] for row in errors}
    assert {name for name, reason in reason_of.items() if reason == "unusable_image"} == set(thin)
    assert set(BOMBS) <= {name for name, reason in reason_of.items() if reason == "decompression_bomb"}
    statuses = Counter(row["status"] for row in rows_of(output, "prompts"))
    assert statuses == Counter(ok=len(fine)) + Counter(reason_of.values())

    # The same pixels as sound PNG files give the same features: what was decoded is what Pillow decodes.
    sound = {}
    for name in fine:
        stream, mark = io.BytesIO(), PngImagePlugin.PngInfo()
        mark.add_text("name", name)
        Image.fromarray(pixels[name]).save(stream, "PNG", pnginfo=mark)
        sound[f"{name}.png"] = stream.getvalue()
    prune(tmp_path / "sound", corpus=(write_manifest(sound),), **options)
    features = [row["features"] for row in rows_of(output, "features.parquet")]
    assert features == [row["features"] for row in rows_of(tmp_path / "sound", "features.parquet")]
    assert [row["ranking"] for row in selections] == [
        row["ranking"] for row in rows_of(tmp_path / "sound", "selections")
    ]
