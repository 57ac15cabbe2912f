"""Synthetic scenes: coloured shapes and real handwritten digits in free layout on noisy, textured backgrounds.

A scene depends only on its split and index, so any scene can be made again alone. Handwriting is split as well: the
digits of the held-out splits were written in images that no training scene contains. `cluttered.py` makes scenes in
which finding the objects is not enough.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image

from drawing import IMAGE_SIZE_PX, SHAPES, background, digit_mask, handwriting, shape_mask

PATCH_SIZE_PX = 8
GRID = IMAGE_SIZE_PX // PATCH_SIZE_PX
NUM_TOKENS = GRID * GRID

KINDS = (*SHAPES, "digit")
DIGIT_KIND = len(SHAPES)
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLUTTER = ("checkers", "stripes", "dots", "stroke", "edge", "half hidden")
MIN_OBJECTS, MAX_OBJECTS = 4, 9
JPEG_QUALITY = 92

# What a patch can show, as the tower is taught to tell it.
PATCH_CLASSES = (
    "background",
    *SHAPES,
    *(f"written {number}" for number in NUMBERS),
    *(f"printed {number}" for number in NUMBERS),
    "mark",
    *CLUTTER,
)
WRITTEN, PRINTED = PATCH_CLASSES.index("written zero"), PATCH_CLASSES.index("printed zero")
MARK, FIRST_CLUTTER = PATCH_CLASSES.index("mark"), PATCH_CLASSES.index(CLUTTER[0])
PATCH_COLORS = ("background", *COLORS, "another")
NO_THING = 255

SPLITS = {"train": 0, "validation": 1, "heldout": 2, "corpus": 3}
HELDOUT_SPLITS = ("validation", "heldout", "corpus")
NUM_TRAINING_DIGITS = 1400

RGB = np.array(
    [[215, 35, 40], [40, 165, 60], [45, 80, 215], [235, 215, 50], [150, 50, 180], [240, 130, 25]], dtype=np.float32
)
SHAPE_SIZES_PX = (14, 34)
DIGIT_SIZES_PX = (20, 36)
_MIN_MASK_PIXELS = 6
_MARK_PIXELS_COUNT = 3  # so that a small mark across four patches shows in one of them


@dataclass(frozen=True)
class SceneObject:
    """One object: indices into KINDS, COLORS and NUMBERS (digit -1 for shapes), its box's corner and side in pixels.

    mark: colour of the small shape painted on it, -1 where there is none.
    """

    kind: int
    color: int
    digit: int
    x: int
    y: int
    size_px: int
    mark: int = -1

    @property
    def center(self) -> tuple[float, float]:
        """Centre (x, y) in pixels."""
        return self.x + self.size_px / 2, self.y + self.size_px / 2


@dataclass(frozen=True)
class Sign:
    """A plate with a printed number: index into COLORS, its digits, the first one's patch (column, row)."""

    color: int
    digits: tuple[int, ...]
    column: int
    row: int

    @property
    def center(self) -> tuple[float, float]:
        """Centre (x, y) in pixels."""
        return (self.column + len(self.digits) / 2) * PATCH_SIZE_PX, (self.row + 0.5) * PATCH_SIZE_PX


@dataclass(frozen=True)
class Thing:
    """What a patch may show: indices into PATCH_CLASSES and PATCH_COLORS, centre (x, y), the whole that it is part of.

    Parts of one whole are the digits of one sign; an object, the mark on it and a piece of clutter are wholes.
    """

    label: int
    color: int
    center: tuple[float, float]
    whole: int


@dataclass(frozen=True)
class Scene:
    """A scene as stored: its JPEG bytes, what it holds, and which thing covers each pixel (owner: -1 background)."""

    jpeg: bytes
    objects: tuple[SceneObject, ...]
    signs: tuple[Sign, ...]
    things: tuple[Thing, ...]
    owner: np.ndarray

    def pixels(self) -> np.ndarray:
        """The decoded JPEG, uint8 (128, 128, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.jpeg)).convert("RGB"))


@cache
def handwriting_pool(split: str) -> np.ndarray:
    """Indices of scikit-learn's handwritten digits that scenes of this split may use."""
    order = np.random.default_rng(20240817).permutation(len(handwriting()[0]))
    return order[NUM_TRAINING_DIGITS:] if split in HELDOUT_SPLITS else order[:NUM_TRAINING_DIGITS]


@dataclass
class Canvas:
    """A scene while it is painted: image float32 (128, 128, 3), which thing owns each pixel, the things so far."""

    image: np.ndarray
    owner: np.ndarray = field(default_factory=lambda: np.full((IMAGE_SIZE_PX, IMAGE_SIZE_PX), -1, np.int8))
    things: list[Thing] = field(default_factory=list)

    def paint(self, mask: np.ndarray, paint: np.ndarray, thing: Thing, *, x: int = 0, y: int = 0) -> None:
        """Paints over the window at (x, y) where mask, in [0, 1], says; pixels above one half become the thing's."""
        window = np.s_[y : y + mask.shape[0], x : x + mask.shape[1]]
        self.image[window] += mask[..., None] * (paint - self.image[window])
        self.owner[window][mask > 0.5] = len(self.things)
        self.things.append(thing)

    def paint_object(self, item: SceneObject, mask: np.ndarray, rng: np.random.Generator) -> None:
        """Paints an object in its colour, a whole of its own."""
        label = WRITTEN + item.digit if item.kind == DIGIT_KIND else 1 + item.kind
        thing = Thing(label, 1 + item.color, item.center, len(self.things))
        self.paint(mask, grainy(RGB[item.color], mask.shape, rng), thing, x=item.x, y=item.y)

    def finished(self, objects: Sequence[SceneObject], signs: Sequence[Sign] = ()) -> Scene:
        """The scene, through JPEG."""
        stored = io.BytesIO()
        Image.fromarray(np.clip(self.image, 0, 255).astype(np.uint8)).save(stored, "JPEG", quality=JPEG_QUALITY)
        return Scene(stored.getvalue(), tuple(objects), tuple(signs), tuple(self.things), self.owner)


def grainy(rgb: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Paint of about this colour, a little lighter or darker and with grain, (height, width, 3)."""
    paint = rgb * rng.uniform(0.85, 1.08) + rng.uniform(-10, 10, 3)
    return paint + rng.integers(-12, 13, (*shape, 1))


def is_free(x: int, y: int, width_px: int, height_px: int, boxes: Sequence[tuple[int, int, int, int]]) -> bool:
    """Whether a box lies apart from all (x, y, width, height) in `boxes`."""
    return all(
        x > left + width or left > x + width_px or y > top + height or top > y + height_px
        for left, top, width, height in boxes
    )


def free_place(
    boxes: Sequence[tuple[int, int, int, int]], size_px: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """A random corner (x, y) for a square box, or None where that one would touch another."""
    x, y = rng.integers(0, IMAGE_SIZE_PX - size_px + 1, 2)
    return (int(x), int(y)) if is_free(x, y, size_px, size_px, boxes) else None


def object_mask(kind: int, size_px: int, pool: np.ndarray, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """Which digit it is (-1: a shape) and the mask of an object of this kind."""
    if kind != DIGIT_KIND:
        return -1, shape_mask(kind, size_px, int(rng.integers(9)))
    pool_index = int(rng.choice(pool))
    return int(handwriting()[1][pool_index]), digit_mask(pool_index, size_px, rng)


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
        low, high = DIGIT_SIZES_PX if kind == DIGIT_KIND else SHAPE_SIZES_PX
        size_px = low if misses > 20 else int(rng.integers(low, high + 1))
        place = free_place([(o.x, o.y, o.size_px, o.size_px) for o in objects], size_px, rng)
        if place is None:
            misses += 1
            continue
        digit, mask = object_mask(kind, size_px, pool, rng)
        masks.append(mask)
        objects.append(SceneObject(kind, int(rng.choice(len(COLORS), p=color_odds)), digit, *place, size_px))
    return objects, masks


def make_scene(split: str, index: int) -> Scene:
    """Plain scene number `index` of a split; raises KeyError for an unknown split."""
    rng = np.random.default_rng([SPLITS[split], index])
    canvas = Canvas(background(rng))
    objects, masks = _place_objects(split, rng)
    for item, mask in zip(objects, masks, strict=True):
        canvas.paint_object(item, mask, rng)
    return canvas.finished(objects)


def patch_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense labels of a scene's patches, raster order.

    Returns classes uint8 (256, 2): indices into PATCH_CLASSES and PATCH_COLORS; centers float32 (256, 2): centre (x, y)
    of the patch's thing in pixels, 0 on background; wholes uint8 (256): which whole of the scene it is part of,
    NO_THING on background. A patch belongs to the thing with the most pixels in it, if those are at least six; a
    mark's count three times.
    """
    tiles = scene.owner.reshape(GRID, PATCH_SIZE_PX, GRID, PATCH_SIZE_PX).transpose(0, 2, 1, 3).reshape(NUM_TOKENS, -1)
    counts = (tiles[:, None] == np.arange(len(scene.things))[:, None]).sum(-1)
    counts[:, [thing.label == MARK for thing in scene.things]] *= _MARK_PIXELS_COUNT
    best, covered = counts.argmax(1), counts.max(1) >= _MIN_MASK_PIXELS
    class_of = np.array([(thing.label, thing.color) for thing in scene.things])
    center_of = np.array([thing.center for thing in scene.things], np.float32)
    whole_of = np.array([thing.whole for thing in scene.things])
    classes = np.where(covered[:, None], class_of[best], 0).astype(np.uint8)
    centers = np.where(covered[:, None], center_of[best], 0).astype(np.float32)
    return classes, centers, np.where(covered, whole_of[best], NO_THING).astype(np.uint8)
