"""Cluttered scenes: what is asked about lies free and whole, clutter is labelled as such, numbers take whole tokens."""

import numpy as np
import pytest
from cluttered import make_cluttered_scene
from scenes import (
    CLUTTER,
    FIRST_CLUTTER,
    GRID,
    IMAGE_SIZE_PX,
    MARK,
    NO_THING,
    PATCH_COLORS,
    PATCH_SIZE_PX,
    PRINTED,
    SPLITS,
    Canvas,
    make_scene,
    patch_labels,
)

_NUM_SCENES = 60


@pytest.fixture(scope="module")
def scenes() -> list:
    return [make_cluttered_scene("validation", index) for index in range(_NUM_SCENES)]


def test_a_scene_depends_on_split_and_index_only(scenes: list) -> None:
    assert make_cluttered_scene("validation", 7).jpeg == scenes[7].jpeg
    different = {make_cluttered_scene(split, index).jpeg for split in SPLITS for index in range(5)}
    assert len(different | {make_scene("validation", 7).jpeg}) == 5 * len(SPLITS) + 1


def test_objects_and_signs_lie_apart_and_inside(scenes: list) -> None:
    for scene in scenes:
        covered = np.zeros((IMAGE_SIZE_PX, IMAGE_SIZE_PX), int)
        for item in scene.objects:
            assert max(item.x, item.y) + item.size_px <= IMAGE_SIZE_PX
            covered[item.y : item.y + item.size_px, item.x : item.x + item.size_px] += 1
        for sign in scene.signs:
            rows = np.s_[sign.row * PATCH_SIZE_PX : (sign.row + 1) * PATCH_SIZE_PX]
            columns = np.s_[sign.column * PATCH_SIZE_PX : (sign.column + len(sign.digits)) * PATCH_SIZE_PX]
            covered[rows, columns] += 1
        assert covered.max() == 1
        assert 3 <= len(scene.objects) <= 6
        assert 1 <= sum(item.mark >= 0 for item in scene.objects) <= 2
        assert len({sign.color for sign in scene.signs}) == len(scene.signs)
    assert {len(scene.signs) for scene in scenes} >= {1, 2}
    assert {len(sign.digits) for scene in scenes for sign in scene.signs} == {2, 3}


def test_each_printed_digit_is_one_token(scenes: list) -> None:
    for scene in scenes:
        classes, centers, wholes = patch_labels(scene)
        printed = (classes[:, 0] >= PRINTED) & (classes[:, 0] < MARK)
        assert printed.sum() == sum(len(sign.digits) for sign in scene.signs)
        for sign in scene.signs:
            tokens = sign.row * GRID + sign.column + np.arange(len(sign.digits))
            assert classes[tokens, 0].tolist() == [PRINTED + digit for digit in sign.digits]
            assert set(classes[tokens, 1]) == {1 + sign.color}
            assert (centers[tokens] == sign.center).all()
            assert len(set(wholes[tokens])) == 1


def test_marks_lie_on_their_hosts(scenes: list) -> None:
    for scene in scenes:
        classes, centers, wholes = patch_labels(scene)
        for host in scene.objects:
            if host.mark >= 0:
                mine = (classes[:, 0] == MARK) & (centers == host.center).all(1)
                assert mine.any()
                assert set(classes[mine, 1]) == {1 + host.mark}
                around = (classes[:, 0] == 1 + host.kind) & (centers == host.center).all(1)
                assert around.sum() >= mine.sum()
                assert not set(wholes[mine]) & set(wholes[around])


def test_clutter_of_every_kind_is_salient_and_labelled(scenes: list) -> None:
    seen = np.zeros(len(CLUTTER), int)
    shares, contrast = [], {"clutter": [], "background": []}
    for scene in scenes:
        classes, _, wholes = patch_labels(scene)
        clutter = classes[:, 0] >= FIRST_CLUTTER
        seen += np.bincount(classes[clutter, 0] - FIRST_CLUTTER, minlength=len(CLUTTER))
        shares.append(clutter.mean())
        assert (classes[clutter, 1] > 0).all()
        assert (wholes[clutter] != NO_THING).all()
        tiles = scene.pixels().reshape(GRID, PATCH_SIZE_PX, GRID, PATCH_SIZE_PX, 3).transpose(0, 2, 1, 3, 4)
        spread = tiles.reshape(GRID * GRID, -1).std(1)
        contrast["clutter"].append(spread[clutter].mean())
        contrast["background"].append(spread[classes[:, 0] == 0].mean())
    assert (seen > _NUM_SCENES).all()
    assert 0.15 < np.mean(shares) < 0.35
    assert np.mean(contrast["clutter"]) > 2 * np.mean(contrast["background"])


def test_at_least_about_half_of_each_hidden_shape_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole one would count as an object to whoever counts."""
    painted: list[int] = []
    paint = Canvas.paint

    def note(canvas: Canvas, mask: np.ndarray, *arguments: object, **place: int) -> None:
        painted.append(int((mask > 0.5).sum()))
        paint(canvas, mask, *arguments, **place)

    monkeypatch.setattr(Canvas, "paint", note)
    hidden = FIRST_CLUTTER + CLUTTER.index("half hidden")
    shares = []
    for index in range(_NUM_SCENES):
        painted.clear()
        scene = make_cluttered_scene("validation", index)
        for number, thing in enumerate(scene.things):
            if thing.label == hidden:
                assert thing.color == PATCH_COLORS.index("another")
                shares.append((scene.owner == number).sum() / painted[number])
    assert len(shares) > _NUM_SCENES
    assert max(shares) <= 0.65
    assert np.mean(shares) >= 0.2
