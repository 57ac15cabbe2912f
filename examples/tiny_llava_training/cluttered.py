"""Scenes in which finding objects is not enough: marks on large objects, numbers in small print, salient clutter.

Clutter is what no question asks about: textured patches, strokes, strong edges, shapes half hidden under a patch. It
is as bright as the objects and partly of their colours. Printed digits are 5 x 7 pixels, each in a patch of its own,
so that a number is read only from all of its tokens.
"""

import math

import numpy as np

from drawing import IMAGE_SIZE_PX, background, line_mask, printed_mask, shape_mask, texture_mask
from scenes import (
    CLUTTER,
    COLORS,
    DIGIT_KIND,
    DIGIT_SIZES_PX,
    FIRST_CLUTTER,
    GRID,
    KINDS,
    MARK,
    PATCH_COLORS,
    PATCH_SIZE_PX,
    PRINTED,
    RGB,
    SHAPE_SIZES_PX,
    SHAPES,
    SPLITS,
    Canvas,
    Scene,
    SceneObject,
    Sign,
    Thing,
    free_place,
    grainy,
    handwriting_pool,
    is_free,
    object_mask,
)

MAX_SIGNS = 2
_STYLE = 1  # sets the random numbers apart from those of plain scenes
_TEXTURES = CLUTTER[:3]
_ROUND_OR_SQUARE = (SHAPES.index("circle"), SHAPES.index("square"))
_HOST_SIZES_PX = (38, 46)
_MARK_SIZES_PX = (12, 16)
_LARGEST_PX = 30  # of objects without a mark
_DARK, _LIGHT = np.full(3, 25, np.float32), np.full(3, 235, np.float32)
_DARK_PLATES = tuple(COLORS.index(name) for name in ("red", "blue", "purple"))
_MISSES = 300


def _tone(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """An RGB colour of clutter and its index into PATCH_COLORS: one of the objects' or nearly black or white."""
    if rng.random() < 0.5:
        color = int(rng.integers(len(COLORS)))
        return RGB[color], 1 + color
    return (_DARK if rng.random() < 0.5 else _LIGHT), PATCH_COLORS.index("another")


def _add(canvas: Canvas, kind: str, mask: np.ndarray, paint: np.ndarray, color: int, x: int = 0, y: int = 0) -> None:
    rows, columns = np.nonzero(mask > 0.5)
    if not len(rows):
        return
    center = (x + (columns.min() + columns.max() + 1) / 2, y + (rows.min() + rows.max() + 1) / 2)
    thing = Thing(FIRST_CLUTTER + CLUTTER.index(kind), color, center, len(canvas.things))
    canvas.paint(mask, paint, thing, x=x, y=y)


def _texture(canvas: Canvas, x: int, y: int, width: int, height: int, rng: np.random.Generator) -> None:
    """A patch of two contrasting tones with its corner at (x, y), or as near to it as the image has room."""
    x, y = int(np.clip(x, 0, IMAGE_SIZE_PX - width)), int(np.clip(y, 0, IMAGE_SIZE_PX - height))
    kind = str(rng.choice(_TEXTURES))
    (first, color), second = _tone(rng), (_DARK if rng.random() < 0.5 else _LIGHT)
    if np.abs(first - second).max() < 60:
        second = _LIGHT if second is _DARK else _DARK
    shown = texture_mask(kind, width, height, rng)[..., None]
    paint = grainy(first, (height, width), rng) * (1 - shown) + second * shown
    _add(canvas, kind, np.ones((height, width), np.float32), paint, color, x, y)


def _polyline(rng: np.random.Generator, *, turns: int, step_px: tuple[float, float]) -> list[tuple[float, float]]:
    x, y, angle = rng.uniform(8, IMAGE_SIZE_PX - 8), rng.uniform(8, IMAGE_SIZE_PX - 8), rng.uniform(0, math.tau)
    points = [(x, y)]
    for _ in range(turns):
        length = rng.uniform(*step_px)
        x, y = x + length * math.cos(angle), y + length * math.sin(angle)
        points.append((x, y))
        angle += rng.uniform(-1.2, 1.2)
    return points


def _paint_clutter(canvas: Canvas, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 3)):
        size = int(rng.integers(18, 33))
        x, y = (int(value) for value in rng.integers(0, IMAGE_SIZE_PX - size + 1, 2))
        mask = shape_mask(int(rng.integers(len(SHAPES))), size, int(rng.integers(9)))
        tone = _DARK if rng.random() < 0.5 else _LIGHT
        _add(canvas, "half hidden", mask, grainy(tone, mask.shape, rng), PATCH_COLORS.index("another"), x, y)
        across, down = ((-1, 0), (1, 0), (0, -1), (0, 1))[rng.integers(4)]
        _texture(canvas, x + across * size // 2, y + down * size // 2, size, size, rng)
    for _ in range(rng.integers(1, 4)):
        x, y = (int(value) for value in rng.integers(0, IMAGE_SIZE_PX, 2))
        width, height = (int(size) for size in rng.integers(14, 31, 2))
        _texture(canvas, x, y, width, height, rng)
    for kind, count, turns, step_px, width_px in (
        ("edge", rng.integers(1, 3), 1, (40, 90), 6),
        ("stroke", rng.integers(2, 5), 4, (7, 16), 3),
    ):
        for _ in range(count):
            tone, color = _tone(rng)
            mask = line_mask(_polyline(rng, turns=turns, step_px=step_px), width_px)
            _add(canvas, kind, mask, grainy(tone, mask.shape, rng), color)


def _place_signs(boxes: list[tuple[int, int, int, int]], rng: np.random.Generator) -> list[Sign]:
    """One or two signs of different colours, apart from `boxes`, to which theirs are added."""
    signs: list[Sign] = []
    wanted, colors = int(rng.integers(1, MAX_SIGNS + 1)), rng.permutation(len(COLORS))
    for _ in range(_MISSES):
        if len(signs) == wanted:
            break
        digits = rng.integers(0, 10, rng.integers(2, 4))
        column, row = int(rng.integers(0, GRID - len(digits) + 1)), int(rng.integers(0, GRID))
        box = (column * PATCH_SIZE_PX, row * PATCH_SIZE_PX, len(digits) * PATCH_SIZE_PX, PATCH_SIZE_PX)
        if is_free(*box, boxes):
            boxes.append(box)
            signs.append(Sign(int(colors[len(signs)]), tuple(map(int, digits)), column, row))
    return signs


def _paint_sign(canvas: Canvas, sign: Sign, rng: np.random.Generator) -> None:
    whole, side = len(canvas.things), (PATCH_SIZE_PX, PATCH_SIZE_PX)
    ink = _LIGHT if sign.color in _DARK_PLATES else _DARK
    for number, digit in enumerate(sign.digits):
        glyph = np.zeros((*side, 1), np.float32)
        left, top = rng.integers(1, 3), rng.integers(0, 2)
        glyph[top : top + 7, left : left + 5, 0] = printed_mask(digit)
        paint = grainy(RGB[sign.color], side, rng) * (1 - glyph) + ink * glyph
        thing = Thing(PRINTED + digit, 1 + sign.color, sign.center, whole)
        corner = {"x": (sign.column + number) * PATCH_SIZE_PX, "y": sign.row * PATCH_SIZE_PX}
        canvas.paint(np.ones(side, np.float32), paint, thing, **corner)


def _paint_mark(canvas: Canvas, host: SceneObject, rng: np.random.Generator) -> None:
    size = int(rng.integers(_MARK_SIZES_PX[0], _MARK_SIZES_PX[1] + 1))
    x, y = (int(middle - size / 2 + rng.integers(-3, 4)) for middle in host.center)
    mask = shape_mask(int(rng.choice(_ROUND_OR_SQUARE)), size, int(rng.integers(9)))
    thing = Thing(MARK, 1 + host.mark, host.center, len(canvas.things))
    canvas.paint(mask, grainy(RGB[host.mark], mask.shape, rng), thing, x=x, y=y)


def make_cluttered_scene(split: str, index: int) -> Scene:
    """Cluttered scene number `index` of a split; raises KeyError for an unknown split."""
    rng = np.random.default_rng([SPLITS[split], index, _STYLE])
    canvas = Canvas(background(rng))
    _paint_clutter(canvas, rng)
    color_odds = rng.dirichlet((3,) * len(COLORS))
    kind_odds = rng.dirichlet((3, 3, 3, 3, 6))
    pool = handwriting_pool(split)
    hosts, wanted = int(rng.integers(1, 3)), int(rng.integers(4, 7))
    boxes: list[tuple[int, int, int, int]] = []
    signs = _place_signs(boxes, rng)
    objects: list[SceneObject] = []
    for miss in range(_MISSES):
        if len(objects) == wanted:
            break
        is_host = len(objects) < hosts
        kind = int(rng.choice(_ROUND_OR_SQUARE)) if is_host else int(rng.choice(len(KINDS), p=kind_odds))
        low, high = _HOST_SIZES_PX if is_host else (DIGIT_SIZES_PX if kind == DIGIT_KIND else SHAPE_SIZES_PX)
        size_px = low if miss > 40 else int(rng.integers(low, (high if is_host else _LARGEST_PX) + 1))
        place = free_place(boxes, size_px, rng)
        if place is None:
            continue
        boxes.append((*place, size_px, size_px))
        digit, mask = object_mask(kind, size_px, pool, rng)
        color = int(rng.choice(len(COLORS), p=color_odds))
        mark = int((color + rng.integers(1, len(COLORS))) % len(COLORS)) if is_host else -1
        item = SceneObject(kind, color, digit, *place, size_px, mark)
        canvas.paint_object(item, mask, rng)
        if is_host:
            _paint_mark(canvas, item, rng)
        objects.append(item)
    for sign in signs:
        _paint_sign(canvas, sign, rng)
    return canvas.finished(objects, signs)
