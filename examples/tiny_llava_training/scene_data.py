"""Renders the training and validation scenes once, into memory-mapped arrays of a working directory."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from cluttered import MAX_SIGNS, make_cluttered_scene
from scenes import (
    DIGIT_KIND,
    IMAGE_SIZE_PX,
    MARK,
    MAX_OBJECTS,
    NUM_TOKENS,
    PRINTED,
    WRITTEN,
    SceneObject,
    Sign,
    make_scene,
    patch_labels,
)

NUM_SCENES = {"train": 64_000, "validation": 1000}
STYLES = {"plain": make_scene, "cluttered": make_cluttered_scene}  # they take turns
_NAMES = tuple(STYLES)
_FIELDS = {
    "images": (np.uint8, (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)),
    "classes": (np.uint8, (NUM_TOKENS, 2)),
    "centers": (np.float16, (NUM_TOKENS, 2)),
    "wholes": (np.uint8, (NUM_TOKENS,)),
    "objects": (np.int16, (MAX_OBJECTS, 7)),
    "signs": (np.int16, (MAX_SIGNS, 6)),
}
_CHUNK = 500


class SceneArrays:
    """The arrays of one split: plain and cluttered scenes by turns.

    images uint8 (N, 128, 128, 3); classes uint8 (N, 256, 2), centers float16 (N, 256, 2) and wholes uint8 (N, 256) as
    `patch_labels` gives them; objects int16 (N, 9, 7) and signs int16 (N, 2, 6: colour, column, row, three digits),
    -1 where a scene has fewer.
    """

    def __init__(self, work_dir: Path, split: str, *, mode: str = "r") -> None:
        folder = work_dir / "scenes" / split
        self.images, self.classes, self.centers, self.wholes, self.objects, self.signs = (
            np.load(folder / f"{name}.npy", mmap_mode=mode) for name in _FIELDS
        )

    def __len__(self) -> int:
        return len(self.images)

    def scene_objects(self, index: int) -> list[SceneObject]:
        """The objects of one scene."""
        return [SceneObject(*map(int, row)) for row in self.objects[index] if row[0] >= 0]

    def scene_signs(self, index: int) -> list[Sign]:
        """The signs of one scene."""
        rows = (tuple(map(int, row)) for row in self.signs[index] if row[0] >= 0)
        return [
            Sign(color, tuple(digit for digit in digits if digit >= 0), column, row)
            for color, column, row, *digits in rows
        ]


def shown_by(
    kept: np.ndarray, classes: np.ndarray, centers: np.ndarray, objects: Sequence[SceneObject], signs: Sequence[Sign]
) -> tuple[list[SceneObject], list[Sign]]:
    """What is left of a scene's objects and signs in the kept tokens.

    kept: token indices (K,); classes uint8 (256, 2) and centers (256, 2) as `patch_labels` gives them. One token of an
    object shows it, of a mark the mark; a sign is shown by the tokens of all its digits.
    """
    tokens = Counter(zip(classes[kept, 0].tolist(), map(tuple, centers[kept].tolist()), strict=True))
    printed = Counter(center for label, center in tokens.elements() if PRINTED <= label < MARK)
    seen = [o for o in objects if tokens[WRITTEN + o.digit if o.kind == DIGIT_KIND else 1 + o.kind, o.center]]
    return (
        [o if o.mark < 0 or tokens[MARK, o.center] else replace(o, mark=-1) for o in seen],
        [sign for sign in signs if printed[sign.center] == len(sign.digits)],
    )


def positions_of(style: str, num_scenes: int) -> np.ndarray:
    """Positions in the arrays of the first `num_scenes` scenes of a style; raises ValueError for an unknown one."""
    return np.arange(num_scenes) * len(_NAMES) + _NAMES.index(style)


def _render_chunk(task: tuple[Path, str, int, int]) -> int:
    work_dir, split, start, stop = task
    arrays = SceneArrays(work_dir, split, mode="r+")
    for index in range(start, stop):
        scene = STYLES[_NAMES[index % len(_NAMES)]](split, index // len(_NAMES))
        arrays.images[index] = scene.pixels()
        arrays.classes[index], arrays.centers[index], arrays.wholes[index] = patch_labels(scene)
        objects = [(o.kind, o.color, o.digit, o.x, o.y, o.size_px, o.mark) for o in scene.objects]
        arrays.objects[index, : len(objects)] = objects
        for number, sign in enumerate(scene.signs):
            row = (sign.color, sign.column, sign.row, *sign.digits)
            arrays.signs[index, number, : len(row)] = row
    return stop - start


def render_split(work_dir: Path, split: str, num_scenes: int, *, num_workers: int) -> None:
    """Renders a split unless a finished one of that size is there."""
    folder = work_dir / "scenes" / split
    done = folder / "done.json"
    if done.exists() and json.loads(done.read_text())["num_scenes"] == num_scenes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, (dtype, shape) in _FIELDS.items():
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (num_scenes, *shape))
        if name in ("objects", "signs"):
            array[:] = -1
        array.flush()
    tasks = [(work_dir, split, i, min(i + _CHUNK, num_scenes)) for i in range(0, num_scenes, _CHUNK)]
    with get_context("fork").Pool(num_workers) as pool:
        for _ in pool.imap_unordered(_render_chunk, tasks):
            pass
    done.write_text(json.dumps({"num_scenes": num_scenes}))


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=NUM_SCENES["train"])
    parser.add_argument("--num-workers", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    for split, num_scenes in (("validation", NUM_SCENES["validation"]), ("train", args.num_scenes)):
        render_split(args.work_dir, split, num_scenes, num_workers=args.num_workers)
        print(f"{split}: {num_scenes} scenes", flush=True)


if __name__ == "__main__":
    main()
