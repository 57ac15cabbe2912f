"""The scene generator: deterministic, in layout and labels what it says, handwriting never shared across the split."""

import numpy as np
import pytest
from scenes import (
    DIGIT_KIND,
    GRID,
    IMAGE_SIZE_PX,
    MAX_OBJECTS,
    MIN_OBJECTS,
    NO_THING,
    PATCH_SIZE_PX,
    SPLITS,
    handwriting_pool,
    make_scene,
    patch_labels,
)
from sklearn.datasets import load_digits


def test_a_scene_depends_on_split_and_index_only() -> None:
    first, again = make_scene("train", 11), make_scene("train", 11)
    assert first.jpeg == again.jpeg
    assert first.objects == again.objects
    different = {make_scene(split, index).jpeg for split in SPLITS for index in range(20)}
    assert len(different) == 20 * len(SPLITS)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(KeyError):
        make_scene("test", 0)


@pytest.mark.parametrize("split", SPLITS)
def test_objects_lie_apart_and_inside(split: str) -> None:
    sizes = []
    for index in range(60):
        objects = make_scene(split, index).objects
        assert MIN_OBJECTS <= len(objects) <= MAX_OBJECTS
        covered = np.zeros((IMAGE_SIZE_PX, IMAGE_SIZE_PX), int)
        for item in objects:
            assert min(item.x, item.y) >= 0
            assert max(item.x, item.y) + item.size_px <= IMAGE_SIZE_PX
            assert (item.digit >= 0) == (item.kind == DIGIT_KIND)
            covered[item.y : item.y + item.size_px, item.x : item.x + item.size_px] += 1
            sizes.append(item.size_px)
        assert covered.max() == 1
    assert min(sizes) <= 18
    assert max(sizes) >= 32


def test_heldout_handwriting_is_disjoint_from_training_handwriting() -> None:
    images = load_digits().images
    written = {split: {images[i].tobytes() for i in handwriting_pool(split)} for split in SPLITS}
    for split in ("validation", "heldout", "corpus"):
        assert len(written[split]) > 350
        assert not written[split] & written["train"]


def test_patch_labels_name_the_object_under_the_patch() -> None:
    for index in range(20):
        scene = make_scene("train", index)
        classes, centers, wholes = patch_labels(scene)
        labelled = 0
        for number, item in enumerate(scene.objects):
            # A patch that lies wholly inside a square's or circle's inner half can only be that object's.
            x, y = (int(value // PATCH_SIZE_PX) for value in item.center)
            if item.size_px >= 28 and item.kind in (0, 1):
                patch = y * GRID + x
                assert classes[patch].tolist() == [1 + item.kind, 1 + item.color]
                assert centers[patch] == pytest.approx(item.center)
                assert wholes[patch] == number
                labelled += 1
        assert set(classes[classes[:, 0] > 0, 1]) <= {1 + item.color for item in scene.objects}
        assert ((classes[:, 0] > 0) == (classes[:, 1] > 0)).all()
        assert ((classes[:, 0] > 0) == (wholes != NO_THING)).all()
