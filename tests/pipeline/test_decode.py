"""Bytes to RGB: every form a corpus holds, and every way bytes can lie."""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFile
from transformers.image_utils import load_image

from pipeline.corpus.decode import MAX_PIXELS, DecodeError, decode_image, image_size
from pipeline.prune import read
from pipeline.prune.read import ReadSettings, read_shard
from schemas.tables import INDEX


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("1", "PNG"),
        ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("P", "GIF"),
        ("RGB", "TIFF"), ("RGB", "BMP"), ("RGB", "PPM"),
    ],
)  # fmt: skip
def test_every_mode_and_format_becomes_rgb(mode, form):
    image = decode_image(encoded(picture(mode), form))
    assert (image.mode, image.size) == ("RGB", (6, 4))


def test_alpha_is_dropped_not_blended():
    source = picture("RGBA")
    source.putalpha(10)
    assert np.array_equal(np.asarray(decode_image(encoded(source, "PNG"))), np.asarray(picture()))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to view
    source = picture()
    image = decode_image(encoded(source, "TIFF", exif=exif))
    assert image.size == (4, 6)
    assert np.array_equal(np.asarray(image), np.rot90(np.asarray(source), -1))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    image = decode_image(encoded(Image.fromarray(values), "PPM"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_twelve_bits_are_scaled_by_their_own_depth():
    stream = io.BytesIO()
    Image.fromarray(np.zeros((1, 4), np.uint16)).save(stream, "TIFF")
    data = bytearray(stream.getvalue())
    with Image.open(io.BytesIO(data)) as image:
        strip = image.tag_v2[273][0]
    entry = data.index(bytes.fromhex("020103000100000010000000"))  # BitsPerSample: one short, 16
    data[entry + 8] = 12
    data[strip : strip + 6] = bytes.fromhex("000 0ff 800 fff".replace(" ", ""))
    counts = data.index(bytes.fromhex("170104000100000008000000"))  # StripByteCounts
    data[counts + 8] = 6
    assert np.asarray(decode_image(bytes(data)))[0, :, 0].tolist() == [0, 15, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_what_transformers_own_loader_gives(dtype):
    values = np.array([[-5, 0, 1, 127, 200.6, 255, 256, 70000]]).astype(dtype)
    data = encoded(Image.fromarray(values), "TIFF")
    expected = load_image(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(expected))
    assert np.asarray(expected)[0, :4, 0].tolist() == [0, 0, 1, 127]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode_image(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"this is a text, not an image", "unreadable_image"),
        (encoded(picture(size=(64, 64)), "JPEG")[:300], "unreadable_image"),
        (encoded(picture(size=(64, 64)), "PNG")[:-40], "unreadable_image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "unreadable_image"),
    ],
)
def test_bad_bytes_have_a_reason(data, reason):
    with pytest.raises(DecodeError) as caught:
        decode_image(data)
    assert caught.value.reason == reason
    assert str(caught.value)


def test_a_bomb_is_refused_before_it_is_unpacked():
    data = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(data) < 100_000
    with pytest.raises(DecodeError) as caught:
        decode_image(data)
    assert caught.value.reason == "decompression_bomb"


def test_the_corpus_decodes_as_its_readme_says(scenes_manifest):
    from pathlib import Path

    folder = Path(scenes_manifest).parent / "images"
    bad = {}
    for path in sorted(folder.iterdir()):
        try:
            decode_image(path.read_bytes())
        except DecodeError as error:
            bad[path.name] = error.reason
    assert bad == {"000017.jpg": "unreadable_image", "000031.jpg": "empty_file", "000042.jpg": "unreadable_image"}


def test_too_little_memory_is_no_fault_of_the_image(monkeypatch, tmp_path, tiny_llava):
    """Neither a bomb nor unreadable: a row of its own that a redo takes up, and the images beside it are done."""
    large, small = encoded(picture(size=(96, 96)), "PNG"), encoded(picture(), "PNG")
    rows = []
    for slot, data in enumerate((large, small)):
        (tmp_path / f"{slot}.png").write_bytes(data)
        row = {"shard": 0, "slot": slot, "image_shard": 0, "input": 0, "sample": slot, "source": f"{slot}.png"}
        rows.append({**row, "path": str(tmp_path / f"{slot}.png"), "image_id": hashlib.sha256(data).hexdigest()})

    class OneShard:
        def read_shard(self, shard: int) -> pa.Table:
            return pa.Table.from_pylist(rows, INDEX)

    def decode_or_run_out(data: bytes):
        if data == large:
            raise MemoryError
        return decode_image(data)

    monkeypatch.setattr(read, "decode_image", decode_or_run_out)
    first, second = read_shard(0, ReadSettings(OneShard(), tiny_llava, tmp_path / "_stop")).to_pylist()
    assert first["reason"] == "out_of_memory"
    assert second["reason"] is None
    assert second["pixels"] is not None


def test_decoding_lets_a_lack_of_memory_through(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        decode_image(encoded(picture(), "PNG"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_header_tells_the_size_without_decoding(form, monkeypatch):
    data = encoded(picture(size=(60, 40)), form)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it is decoded"))
    assert image_size(io.BytesIO(data)) == (60, 40)


def test_no_size_is_told_where_nothing_would_be_decoded():
    assert image_size(io.BytesIO(b"")) is None
    assert image_size(io.BytesIO(b"no image at all")) is None
    assert image_size(io.BytesIO(encoded(picture(), "PNG")[:12])) is None
    assert image_size(io.BytesIO(b"P6 20000 20000 255\n")) is None
    assert MAX_PIXELS < 20000 * 20000
