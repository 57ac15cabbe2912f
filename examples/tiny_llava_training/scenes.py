"""Synthetic scenes: coloured shapes and real handwritten digits in free layout on noisy, textured backgrounds.

A scene depends only on its split and index, so any scene can be made again alone. Handwriting is split as well: the
digits of the held-out splits were written in images that no training scene contains.
"""

import io
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

IMAGE_SIZE_PX = 128
PATCH_SIZE_PX = 8
GRID = IMAGE_SIZE_PX // PATCH_SIZE_PX
NUM_TOKENS = GRID * GRID

SHAPES = ("circle", "square", "triangle", "star")
KINDS = (*SHAPES, "digit")
DIGIT_KIND = len(SHAPES)
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MIN_OBJECTS, MAX_OBJECTS = 4, 9
JPEG_QUALITY = 92

SPLITS = {"train": 0, "validation": 1, "heldout": 2, "corpus": 3}
HELDOUT_SPLITS = ("validation", "heldout", "corpus")
NUM_TRAINING_DIGITS = 1400

_RGB = np.array(
    [[215, 35, 40], [40, 165, 60], [45, 80, 215], [235, 215, 50], [150, 50, 180], [240, 130, 25]], dtype=np.float32
)
_SHAPE_SIZES_PX = (14, 34)
_DIGIT_SIZES_PX = (20, 36)
_MIN_MASK_PIXELS = 6


@dataclass(frozen=True)
class SceneObject:
    """One object: indices into KINDS, COLORS and NUMBERS (digit -1 for shapes), its box's corner and side in pixels."""

    kind: int
    color: int
    digit: int
    x: int
    y: int
    size_px: int

    @property
    def center(self) -> tuple[float, float]:
        """Centre (x, y) in pixels."""
        return self.x + self.size_px / 2, self.y + self.size_px / 2


@dataclass(frozen=True)
class Scene:
    """A scene as stored: its JPEG bytes, its objects and which object's mask covers each pixel (-1: background)."""

    jpeg: bytes
    objects: tuple[SceneObject, ...]
    owner: np.ndarray

    def pixels(self) -> np.ndarray:
        """The decoded JPEG, uint8 (128, 128, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.jpeg)).convert("RGB"))


@cache
def _handwriting() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images.astype(np.float32) / 16.0, digits.target.astype(int)


@cache
def handwriting_pool(split: str) -> np.ndarray:
    """Indices of scikit-learn's handwritten digits that scenes of this split may use."""
    order = np.random.default_rng(20240817).permutation(len(_handwriting()[0]))
    return order[NUM_TRAINING_DIGITS:] if split in HELDOUT_SPLITS else order[:NUM_TRAINING_DIGITS]


@cache
def _shape_mask(kind: int, size_px: int, turn: int) -> np.ndarray:
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


def _digit_mask(pool_index: int, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Mask in [0, 1] of one handwritten digit, slightly turned, slanted and narrowed, (size, size)."""
    source = Image.fromarray(_handwriting()[0][pool_index])
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


def _background(rng: np.random.Generator) -> np.ndarray:
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


def _free_box(placed: list[SceneObject], size_px: int, rng: np.random.Generator) -> tuple[int, int] | None:
    x, y = rng.integers(0, IMAGE_SIZE_PX - size_px + 1, 2)
    for other in placed:
        beside = x > other.x + other.size_px or other.x > x + size_px
        if not (beside or y > other.y + other.size_px or other.y > y + size_px):
            return None
    return int(x), int(y)


def _place_objects(split: str, rng: np.random.Generator) -> tuple[list[SceneObject], list[np.ndarray]]:
    wanted = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    kind_odds = rng.dirichlet((3, 3, 3, 3, 6))
    color_odds = rng.dirichlet((3,) * len(COLORS))
    pool = handwriting_pool(split)
    objects: list[SceneObject] = []
    masks: list[np.ndarray] = []
    misses = 0
    while len(objects) < wanted:
        kind = int(rng.choice(len(KINDS), p=kind_odds))
        low, high = _DIGIT_SIZES_PX if kind == DIGIT_KIND else _SHAPE_SIZES_PX
        size_px = low if misses > 20 else int(rng.integers(low, high + 1))
        box = _free_box(objects, size_px, rng)
        if box is None:
            misses += 1
            continue
        digit = -1
        if kind == DIGIT_KIND:
            pool_index = int(rng.choice(pool))
            digit = int(_handwriting()[1][pool_index])
            masks.append(_digit_mask(pool_index, size_px, rng))
        else:
            masks.append(_shape_mask(kind, size_px, int(rng.integers(9))))
        objects.append(SceneObject(kind, int(rng.choice(len(COLORS), p=color_odds)), digit, *box, size_px))
    return objects, masks


def make_scene(split: str, index: int) -> Scene:
    """Scene number `index` of a split; raises KeyError for an unknown split."""
    rng = np.random.default_rng([SPLITS[split], index])
    image = _background(rng)
    objects, masks = _place_objects(split, rng)
    owner = np.full((IMAGE_SIZE_PX, IMAGE_SIZE_PX), -1, np.int8)
    for number, (item, mask) in enumerate(zip(objects, masks, strict=True)):
        window = np.s_[item.y : item.y + item.size_px, item.x : item.x + item.size_px]
        paint = _RGB[item.color] * rng.uniform(0.85, 1.08) + rng.uniform(-10, 10, 3)
        paint = paint + rng.integers(-12, 13, (*mask.shape, 1))
        image[window] += mask[..., None] * (paint - image[window])
        owner[window][mask > 0.5] = number
    stored = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(stored, "JPEG", quality=JPEG_QUALITY)
    return Scene(stored.getvalue(), tuple(objects), owner)


def patch_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Dense labels of a scene's patches, raster order.

    Returns classes uint8 (256, 2): object class (0 background, 1-4 shapes, 5-14 digits) and colour (0 background, 1-6);
    centers float32 (256, 2): centre (x, y) of the patch's object in pixels, 0 on background. A patch belongs to the
    object with the most mask pixels in it, if those are at least six.
    """
    tiles = scene.owner.reshape(GRID, PATCH_SIZE_PX, GRID, PATCH_SIZE_PX).transpose(0, 2, 1, 3).reshape(NUM_TOKENS, -1)
    counts = (tiles[:, None] == np.arange(len(scene.objects))[:, None]).sum(-1)
    best, covered = counts.argmax(1), counts.max(1) >= _MIN_MASK_PIXELS
    class_of = np.array([5 + o.digit if o.kind == DIGIT_KIND else 1 + o.kind for o in scene.objects])
    color_of = np.array([1 + o.color for o in scene.objects])
    center_of = np.array([o.center for o in scene.objects], np.float32)
    classes = np.where(covered[:, None], np.stack([class_of, color_of], 1)[best], 0).astype(np.uint8)
    return classes, np.where(covered[:, None], center_of[best], 0).astype(np.float32)
