"""200 images no one would wish for, made from a seed: bit flips, cuts, lying headers, bombs, odd depths and shapes."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.synthetic import textured

SEED = 7
COUNT = 200
_FUZZED = {"jpg": 46, "png": 36, "webp": 30, "gif": 24, "tiff": 24}  # the rest are made by hand


def _saved(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _picture(number: int, width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(textured(SEED, number)).resize((width, height))


def _sound(extension: str, number: int) -> bytes:
    """A sound file of a format, in several of its forms by turns."""
    image, turn = _picture(number), number % 3
    if extension == "jpg":
        return _saved(image, "JPEG", quality=80, progressive=turn == 1, optimize=turn == 2)
    if extension == "png":
        return _saved(image if turn else image.quantize(64), "PNG", compress_level=(1, 6, 9)[turn])
    if extension == "webp":
        return _saved(image, "WEBP", lossless=turn == 1)
    if extension == "gif":
        return _saved(image.quantize(32), "GIF", **(_more_frames(number) if turn == 1 else {}))
    return _saved(image, "TIFF", compression=(None, "tiff_lzw", "tiff_adobe_deflate")[turn])


def _more_frames(number: int) -> dict:
    return {"save_all": True, "append_images": [_picture(number + n) for n in (1, 2)]}


def _flip_bits(data: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for place in generator.integers(0, len(data) * 8, int(generator.integers(1, 40))):
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def _cut(data: bytes, generator: np.random.Generator) -> bytes:
    return data[: int(generator.integers(1, len(data)))]


def _blank(data: bytes, generator: np.random.Generator) -> bytes:
    begin = int(generator.integers(0, len(data)))
    length = int(generator.integers(1, max(2, len(data) // 4)))
    return data[:begin] + bytes([int(generator.integers(0, 256))]) * length + data[begin + length :]


def _lie_in_header(data: bytes, generator: np.random.Generator) -> bytes:
    """Other bytes in the first 64, where formats keep sizes, depths and offsets; the magic number is left."""
    changed = bytearray(data)
    for place in generator.integers(8, min(64, len(data)), int(generator.integers(1, 6))):
        changed[place] = int(generator.integers(0, 256))
    return bytes(changed)


def _swap(data: bytes, generator: np.random.Generator) -> bytes:
    """Two neighbouring pieces change places."""
    a, b, c = sorted(int(n) for n in generator.integers(8, len(data), 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


_HARMS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (_flip_bits, _cut, _blank, _lie_in_header, _swap)


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the given chunks, each with a right checksum."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


def _png_cases() -> dict[str, bytes]:
    rows = zlib.compress((b"\0" + b"\x10\x80\xf0" * 4) * 4)  # 4 x 4, colour
    end = (b"IEND", b"")
    deep = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    deep_rgb = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.stack([deep] * 3, -1)))
    return {
        "zero-size.png": png_chunks(_header(0, 0), (b"IDAT", rows), end),
        "zero-width.png": png_chunks(_header(0, 4), (b"IDAT", rows), end),
        "no-data.png": png_chunks(_header(4, 4), end),
        "no-end.png": png_chunks(_header(4, 4), (b"IDAT", rows)),
        "no-header.png": png_chunks((b"IDAT", rows), end),
        "two-headers.png": png_chunks(_header(4, 4), _header(8, 8), (b"IDAT", rows), end),
        "data-before-palette.png": png_chunks(_header(4, 4, 8, 3), (b"IDAT", rows), (b"PLTE", b"\0" * 9), end),
        "depth-3.png": png_chunks(_header(4, 4, 3), (b"IDAT", rows), end),
        "colour-5.png": png_chunks(_header(4, 4, 8, 5), (b"IDAT", rows), end),
        "interlaced-short.png": png_chunks(_header(4, 4, interlace=1), (b"IDAT", rows), end),
        "declares-60000.png": png_chunks(_header(60_000, 60_000), (b"IDAT", rows), end),
        "declares-2-31.png": png_chunks(_header(2**31 - 1, 2**31 - 1), (b"IDAT", rows), end),
        "text-bomb.png": png_chunks(
            _header(4, 4), (b"zTXt", b"k\0\0" + zlib.compress(b"a" * (80 << 20), 9)), (b"IDAT", rows), end
        ),
        "icc-garbage.png": png_chunks(_header(4, 4), (b"iCCP", b"p\0\0not zlib"), (b"IDAT", rows), end),
        "bomb-20000.png": _saved(Image.new("1", (20_000, 20_000)), "PNG"),
        "grey-16.png": _saved(Image.fromarray(deep), "PNG"),
        "colour-16.png": png_chunks(_header(64, 48, 16), (b"IDAT", deep_rgb), end),
        "animated.png": _saved(_picture(1), "PNG", **_more_frames(1)),
        "transparent.png": _saved(_picture(2).convert("RGBA"), "PNG"),
        "wide-20000.png": _saved(_picture(3, 20_000, 1), "PNG"),
        "tall-20000.png": _saved(_picture(4, 1, 20_000), "PNG"),
        "one-pixel.png": _saved(_picture(5, 1, 1), "PNG"),
    }


def _other_cases() -> dict[str, bytes]:
    jpeg = _saved(_picture(6), "JPEG")
    frame = jpeg.index(b"\xff\xc0")  # start of frame: length 2, depth 1, height 2, width 2
    turned, absurd = Image.Exif(), Image.Exif()
    turned[0x0112], absurd[0x0112] = 6, 77
    deep = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    gif = _saved(_picture(7).quantize(16), "GIF")
    bmp = _saved(_picture(8), "BMP")
    return {
        "declares-65500.jpg": jpeg[: frame + 5] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 9 :],
        "declares-nothing.jpg": jpeg[: frame + 5] + b"\0\0\0\0" + jpeg[frame + 9 :],
        "turned.jpg": _saved(_picture(9), "JPEG", exif=turned),
        "turned-absurdly.jpg": _saved(_picture(10), "JPEG", exif=absurd),
        "exif-garbage.jpg": _saved(_picture(11), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "four-inks.jpg": _saved(_picture(12).convert("CMYK"), "JPEG"),
        "wide-20000.jpg": _saved(_picture(13, 20_000, 1), "JPEG"),
        "trailing-garbage.jpg": jpeg + b"\0garbage" * 500,
        "really-a-png.jpg": _saved(_picture(14), "PNG"),
        "really-html.jpg": b"<!doctype html><html><body>404 not found</body></html>",
        "really-svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "really-jpeg-2000.jpg": _saved(_picture(15), "JPEG2000"),
        "really-postscript.png": _saved(_picture(16), "EPS"),
        "empty.webp": b"",
        "only-magic.webp": b"RIFF\x10\0\0\0WEBPVP8 ",
        "animated.webp": _saved(_picture(17), "WEBP", **_more_frames(17)),
        "animated.gif": _saved(_picture(20).quantize(16), "GIF", **_more_frames(20)),
        "declares-65535.gif": gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:],
        "no-frame.gif": gif[:13] + b";",
        "grey-16.tiff": _saved(Image.fromarray(deep), "TIFF"),
        "grey-16-big-endian.tiff": _saved(Image.frombytes("I;16B", (64, 48), deep.astype(">u2").tobytes()), "TIFF"),
        "float.tiff": _saved(Image.fromarray(deep.astype(np.float32) / 257), "TIFF"),
        "pages.tiff": _saved(_picture(23), "TIFF", **_more_frames(23)),
        "offset-beyond.tiff": b"II*\0" + struct.pack("<I", 0xFFFFFFF0) + b"\0" * 64,
        "endless.tiff": b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8),
        "no-height.bmp": bmp[:22] + struct.pack("<i", 0) + bmp[26:],
        "declares-2-31.bmp": bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:],
        "negative.bmp": bmp[:18] + struct.pack("<ii", -64, 48) + bmp[26:],
        "short.ppm": b"P6 64 48 255\n" + b"\x80" * 100,
        "letters.ppm": b"P6 six four 255\n" + b"\x80" * 100,
    }


def malformed_images() -> dict[str, bytes]:
    """Exactly 200 files by name; the same bytes every time, no two alike."""
    files: dict[str, bytes] = {**_png_cases(), **_other_cases()}
    generator = np.random.default_rng(SEED)
    todo = [(extension, n) for extension, count in _FUZZED.items() for n in range(count)]
    for number, (extension, n) in enumerate(todo[: COUNT - len(files)]):
        harm = _HARMS[n % len(_HARMS)]
        files[f"{harm.__name__.strip('_').replace('_', '-')}-{n:02d}.{extension}"] = harm(
            _sound(extension, 100 + number), generator
        )
    assert len(files) == len(set(files.values())) == COUNT, (len(files), len(set(files.values())))
    return files
