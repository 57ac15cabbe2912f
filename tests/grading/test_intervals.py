"""Bootstrap intervals over images: they cover what they say, prompts of an image together, in groups beyond a limit."""

import numpy as np
import pytest

from pipeline.grading import intervals
from pipeline.grading.intervals import ImageSums, estimates
from pipeline.grading.metrics.metric import mean

MEAN = {"mean": mean}


def image_id(number: int) -> str:
    return f"{number * 2654435761 % 2**32:064x}"


def test_sums_are_of_images_whatever_the_order():
    sums = ImageSums()
    for number, score, counts in ((2, 1.0, (3, 1)), (1, 0.5, (1, 0)), (2, 0.0, (4, 1))):
        sums.add(image_id(number), score, counts)
    assert sums.array().tolist() == [[1, 0.5, 1, 0], [2, 1, 7, 2]][:: 1 if image_id(1) < image_id(2) else -1]


def test_intervals_cover_a_known_mean_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    covered, simulated = 0, 400
    for trial in range(simulated):
        asked_I = rng.integers(1, 6, 60).astype(np.float64)
        ease_I = rng.uniform(0.3, 0.9, 60)
        right_I = rng.binomial(asked_I.astype(int), ease_I).astype(np.float64)
        found = estimates(np.stack([asked_I, right_I], axis=1), MEAN, seed=trial)["mean"]
        covered += bool(found.low <= 0.6 <= found.high)
    assert 0.91 <= covered / simulated <= 0.98  # 95 %, three standard errors and a small sample's loss


def test_prompts_of_one_image_are_resampled_together():
    """Taken for independent, prompts that repeat one another would give intervals half as wide."""
    right_I = np.random.default_rng(1).integers(0, 2, 200).astype(np.float64)
    together = estimates(np.stack([np.full(200, 4.0), 4 * right_I], axis=1), MEAN)["mean"]
    apart = estimates(np.stack([np.ones(800), np.repeat(right_I, 4)], axis=1), MEAN)["mean"]
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(2, abs=0.2)


def test_many_images_are_resampled_in_groups(monkeypatch):
    """The same total, an interval as wide, no more rows than groups, and no matter in which order images came."""
    monkeypatch.setattr(intervals, "MAX_GROUPS", 200)
    rng = np.random.default_rng(2)
    rows = [(image_id(n), float(rng.random() < 0.7)) for n in range(2000)]
    sums, backwards = ImageSums(), ImageSums()
    for one, score in rows:
        sums.add(one, score, ())
    for one, score in reversed(rows):
        backwards.add(one, score, ())
    assert sums.in_groups
    assert len(sums.array()) <= 200
    assert np.array_equal(sums.array(), backwards.array())
    grouped = estimates(sums.array(), MEAN)["mean"]
    single = estimates(np.array([[1.0, score] for _, score in rows]), MEAN)["mean"]
    assert grouped.value == single.value
    assert (grouped.high - grouped.low) / (single.high - single.low) == pytest.approx(1, abs=0.2)


def test_one_image_has_no_interval():
    found = estimates(np.array([[3.0, 2.0]]), MEAN)["mean"]
    assert (found.value, found.low, found.high) == (pytest.approx(2 / 3), None, None)
