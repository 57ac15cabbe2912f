"""Training is resumable: an interrupted run ends with the same bits as one that was not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from cluttered import make_cluttered_scene
from features import extract_features, feature_array
from scene_data import SceneArrays, render_split, shown_by
from scenes import MARK, NO_THING, NUM_TOKENS, patch_labels
from settle_tower import SettleSettings, TowerSettler
from train_language import LanguageSettings, LanguageTrainer, kept_tokens, random_subset, weighted_subset
from train_tower import TowerSettings, TowerTrainer

pytestmark = pytest.mark.long

_NUM_SCENES = 12


@pytest.fixture(scope="module")
def scenes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("work")
    render_split(work_dir, "train", _NUM_SCENES, num_workers=1)
    return work_dir


def _work_dir(path: Path, scenes_dir: Path) -> Path:
    path.mkdir()
    (path / "scenes").symlink_to(scenes_dir / "scenes")
    return path


def _same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


def _tower(work_dir: Path) -> TowerTrainer:
    settings = TowerSettings(num_steps=4, schedule_steps=4, batch_size=3, focused_share=0.5, checkpoint_every=2)
    return TowerTrainer(settings, SceneArrays(work_dir, "train"), work_dir)


def test_resumed_training_ends_with_the_same_bits(
    scenes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model, "NUM_THREADS", 1)
    whole, parts = _work_dir(tmp_path / "whole", scenes_dir), _work_dir(tmp_path / "parts", scenes_dir)
    _tower(whole).run()
    _tower(parts).run(stop_step=3)
    resumed = _tower(parts)
    assert resumed.step == 2
    resumed.run()
    assert _same(torch.load(whole / "tower.pt"), torch.load(parts / "tower.pt"))

    settle = SettleSettings(num_steps=4, batch_size=3, fit_scenes=4, checkpoint_every=2)
    for folder, stops in ((whole, (4,)), (parts, (3, 4))):
        for stop in stops:
            TowerSettler(settle, SceneArrays(folder, "train"), folder).run(stop_step=stop)
    assert _same(torch.load(whole / "tower-settled.pt"), torch.load(parts / "tower-settled.pt"))

    settings = LanguageSettings(num_steps=4, batch_size=3, checkpoint_every=2)
    for folder in (whole, parts):
        extract_features(folder, "train", _NUM_SCENES)
    assert (feature_array(whole, "train") == feature_array(parts, "train")).all()
    LanguageTrainer(settings, whole).run()
    LanguageTrainer(settings, parts).run(stop_step=3)
    LanguageTrainer(settings, parts).run()
    name = "language-seed1.pt"
    assert _same(torch.load(whole / name), torch.load(parts / name))
    frozen = torch.load(whole / "tower-settled.pt")["tower"]
    trained = torch.load(whole / name)["model"]
    assert all(torch.equal(trained[f"model.vision_tower.{key}"], value) for key, value in frozen.items())


def _things() -> tuple[np.ndarray, np.ndarray]:
    """An image with two objects of 16 and 4 tokens and a piece of clutter of 8."""
    wholes = np.full(NUM_TOKENS, NO_THING, np.uint8)
    wholes[:16], wholes[16:20], wholes[20:28] = 0, 1, 2
    return wholes, wholes == 2


def test_kept_tokens_are_in_raster_order_and_of_every_number() -> None:
    rng, settings = np.random.default_rng(0), LanguageSettings()
    wholes, is_clutter = (np.tile(part, (3, 1)) for part in _things())
    numbers = []
    for _ in range(400):
        kept = kept_tokens(rng, wholes, is_clutter, settings)
        assert (np.diff(kept, axis=1) > 0).all()
        numbers.append(kept.shape[1])
    assert min(numbers) < 12
    assert 70 < sum(number == NUM_TOKENS for number in numbers) < 140
    assert len(set(numbers)) > 80
    assert not (random_subset(rng, 2, 64)[0] == random_subset(rng, 2, 64)[0]).all()


def test_weighted_subsets_go_from_things_only_to_background_only() -> None:
    wholes, is_clutter = (np.tile(part, (2000, 1)) for part in _things())
    kept = weighted_subset(np.random.default_rng(1), wholes, is_clutter, 16)
    shown = np.take_along_axis(wholes, kept, 1)
    on_things = (shown != NO_THING).mean(1)
    assert (on_things == 1).mean() > 0.05
    assert (on_things == 0).mean() > 0.25
    assert ((on_things > 0.05) & (on_things < 0.5)).mean() > 0.2
    # The number of tokens betrays nothing: the small object often has more of them than the large one.
    large, small = (shown == 0).sum(1), (shown == 1).sum(1)
    assert (small > large).mean() > 0.05
    assert (large > small).mean() > 0.2
    assert ((shown == 2).mean(1) > 0.4).any()


def test_questions_are_about_what_the_kept_tokens_show() -> None:
    lost, marks, signs = 0, 0, 0
    for index in range(20):
        scene = make_cluttered_scene("train", index)
        classes, centers, _ = patch_labels(scene)
        everything = np.arange(NUM_TOKENS)
        assert shown_by(everything, classes, centers, scene.objects, scene.signs) == (
            list(scene.objects),
            list(scene.signs),
        )
        for number, item in enumerate(scene.objects):
            of_it = (centers == item.center).all(1)
            only_mark = everything[of_it & (classes[:, 0] == MARK)]
            assert shown_by(only_mark, classes, centers, scene.objects, scene.signs) == ([], [])
            one = everything[of_it & (classes[:, 0] != MARK)][:1]
            objects, seen = shown_by(one, classes, centers, scene.objects, scene.signs)
            assert (objects, seen) == ([replace(scene.objects[number], mark=-1)], [])
            lost += len(scene.objects) - 1
            marks += len(only_mark) > 0
        for sign in scene.signs:
            tokens = everything[(centers == sign.center).all(1)]
            assert shown_by(tokens, classes, centers, scene.objects, scene.signs) == ([], [sign])
            assert shown_by(tokens[1:], classes, centers, scene.objects, scene.signs) == ([], [])
            signs += 1
    assert min(lost, marks, signs) > 20


def test_no_selector_takes_part_in_training() -> None:
    folder = Path(tiny_model.__file__).parent
    trained_with = ["scenes", "cluttered", "drawing", "questions", "packing", "features", "scene_data", "stage_trainer"]
    for name in (*trained_with, "tiny_model", "train_tower", "settle_tower", "train_language"):
        assert "zoo_ops" not in (folder / f"{name}.py").read_text()
