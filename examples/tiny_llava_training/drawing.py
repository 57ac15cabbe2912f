"""Pixels of what scenes are made of: ground, shapes, handwriting, print and clutter."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

IMAGE_SIZE_PX = 128
SHAPES = ("circle", "square", "triangle", "star")


@cache
def handwriting() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images.astype(np.float32) / 16.0, digits.target.astype(int)


@cache
def shape_mask(kind: int, size_px: int, turn: int) -> np.ndarray:
    """Anti-aliased mask in [0, 1] of a shape, (size, size); turn 0..8 rotates it by up to 20 degrees either way."""
    scale = 4
    center, radius = size_px * scale / 2, size_px * scale / 2 - 1
    canvas = Image.new("L", (size_px * scale, size_px * scale), 0)
    draw = ImageDraw.Draw(canvas)
    if SHAPES[kind] == "circle":
        reach = radius * 0.92
        draw.ellipse([center - reach, center - reach, center + reach, center + reach], fill=255)
    else:
        corners, start, tilt, inner = {
            "square": (4, math.pi / 4, 14, 1.0),
            "triangle": (3, -math.pi / 2, 20, 1.0),
            "star": (10, -math.pi / 2, 20, 0.42),
        }[SHAPES[kind]]
        start += (turn - 4) / 4 * math.radians(tilt)
        reaches = [radius * (inner if i % 2 else 1.0) for i in range(corners)]
        angles = [start + 2 * math.pi * i / corners for i in range(corners)]
        draw.polygon(
            [(center + r * math.cos(a), center + r * math.sin(a)) for r, a in zip(reaches, angles, strict=True)],
            fill=255,
        )
    return np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX), np.float32) / 255


def digit_mask(pool_index: int, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Mask in [0, 1] of one handwritten digit, slightly turned, slanted and narrowed, (size, size)."""
    source = Image.fromarray(handwriting()[0][pool_index])
    zoom, narrow = 8 / size_px, rng.uniform(1.0, 1.25)
    angle, slant = math.radians(rng.uniform(-9, 9)), rng.uniform(-0.12, 0.12)
    a, b = math.cos(angle) * zoom * narrow, (math.sin(angle) + slant) * zoom
    d, e = -math.sin(angle) * zoom, math.cos(angle) * zoom
    middle = size_px / 2
    matrix = (a, b, 4 - a * middle - b * middle, d, e, 4 - d * middle - e * middle)
    mask = np.asarray(source.transform((size_px, size_px), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))
    return np.clip((mask - 0.15) * rng.uniform(1.5, 2.1), 0, 1)


@cache
def _upsampling(cells: int) -> np.ndarray:
    """Linear interpolation from a coarse axis to the image's, (128, cells)."""
    position = np.linspace(0, cells - 1, IMAGE_SIZE_PX, dtype=np.float32)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32)))


def background(rng: np.random.Generator) -> np.ndarray:
    """A dim, tinted ground with smooth blotches, fine blotches, sometimes stripes, faint strokes and pixel noise."""
    size = IMAGE_SIZE_PX
    image = np.full((size, size, 3), rng.uniform(70, 175), np.float32) + rng.uniform(-18, 18, 3).astype(np.float32)
    for cells, channels, strength in ((7, 3, 14.0), (22, 1, 11.0)):
        coarse = rng.standard_normal((channels, cells, cells), dtype=np.float32) * np.float32(strength)
        up = _upsampling(cells)
        image += (up @ coarse @ up.T).transpose(1, 2, 0)
    if rng.random() < 0.5:
        angle, waves, strength = rng.uniform(0, math.pi), rng.uniform(4, 20), rng.uniform(4, 16)
        axis = np.arange(size, dtype=np.float32) / size
        phase = 2 * math.pi * waves * (axis[:, None] * math.sin(angle) + axis[None] * math.cos(angle))
        image += (np.float32(strength) * np.sin(phase, dtype=np.float32))[..., None]
    strokes = Image.new("L", (size, size), 128)
    draw = ImageDraw.Draw(strokes)
    for _ in range(rng.integers(0, 9)):
        x, y, angle, length = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0, math.tau), rng.uniform(4, 14)
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        draw.line(
            [(x, y), end], fill=int(128 + rng.choice((-1, 1)) * rng.integers(12, 36)), width=int(rng.integers(1, 4))
        )
    image += (np.asarray(strokes, np.float32) - 128)[..., None]
    return image + rng.integers(-15, 16, (size, size, 1), dtype=np.int8)


_GLYPHS = (  # printed digits, 5 pixels wide and 7 high, a row in five bits
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)


@cache
def printed_mask(digit: int) -> np.ndarray:
    """Mask of a printed digit, 0 or 1, float32 (7, 5)."""
    return np.array([[row >> bit & 1 for bit in range(4, -1, -1)] for row in _GLYPHS[digit]], np.float32)


def texture_mask(texture: str, width_px: int, height_px: int, rng: np.random.Generator) -> np.ndarray:
    """Where the second of two tones shows in a textured patch, 0 or 1, float32 (height, width).

    texture: "checkers", "stripes" or "dots"; raises KeyError for another.
    """
    y, x = np.mgrid[:height_px, :width_px].astype(np.float32)
    period = rng.integers(3, 7)
    angle = rng.uniform(0, math.pi)
    turned = x * math.cos(angle) + y * math.sin(angle)
    tones = {
        "checkers": (x // period + y // period) % 2,
        "stripes": turned // period % 2,
        "dots": np.hypot(x % (period + 2) - period / 2, y % (period + 2) - period / 2) < period / 2.6,
    }
    return tones[texture].astype(np.float32)


def line_mask(points: list[tuple[float, float]], width_px: int) -> np.ndarray:
    """Mask in [0, 1] of a polyline over the whole image, (128, 128)."""
    canvas = Image.new("L", (IMAGE_SIZE_PX, IMAGE_SIZE_PX), 0)
    ImageDraw.Draw(canvas).line(points, fill=255, width=width_px, joint="curve")
    return np.asarray(canvas, np.float32) / 255
