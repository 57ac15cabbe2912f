"""The bound on a loss: how often a budget whose true loss is exactly the tolerance would be called safe."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.safe_bounds import (
    CASES,
    RESAMPLES,
    SAMPLES,
    Case,
    all_or_none,
    bound,
    correlated,
    percentile,
    studentised,
    wrongly_safe,
)
from pipeline.choosing.resampling import draws, per_image, upper_bounds


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.make.__name__}-{case.images}")
def test_a_loss_at_the_tolerance_is_seldom_called_safe(case):
    assert SAMPLES == 500
    sums_RI, asked_I = case.samples()
    assert sums_RI.sum() / (SAMPLES * asked_I.sum()) == pytest.approx(case.tolerance, rel=0.1)
    assert wrongly_safe(case, bound) <= 0.07


def test_the_percentile_and_studentised_bootstraps_would_call_it_safe_too_often():
    """Why there is a bound of its own: a sample that lost nothing can't be resampled into one that did."""
    case = Case(all_or_none, 100, 0.02)
    assert wrongly_safe(case, percentile) > 0.1
    assert wrongly_safe(case, studentised) > 0.1


@pytest.mark.parametrize(("lost", "images"), [(0, 40), (1, 100), (7, 300)])
def test_of_images_that_are_lost_or_not_it_is_the_clopper_pearson_bound(lost, images):
    sums_I = np.zeros(images)
    sums_I[:lost] = 3
    (bound,) = upper_bounds(sums_I[None], np.full(images, 3.0), resamples=100_000)
    assert bound == pytest.approx(stats.beta.ppf(0.95, lost + 1, images - lost), rel=0.02)


def test_a_bound_has_power():
    """Where as many prompts are won as are lost, 500 images mostly prove two points."""
    assert wrongly_safe(Case(correlated, 500, 0.02), bound) < 0.1
    sums_RI, asked_I = correlated(np.random.default_rng(5), 500, 0.0, 100)
    assert (upper_bounds(sums_RI, asked_I, resamples=RESAMPLES) <= 0.02).mean() > 0.5


def test_the_same_numbers_every_time_and_for_each_loss_alone():
    rng = np.random.default_rng(2)
    sums_CI, asked_I = rng.normal(0, 0.1, (3, 50)), np.full(50, 2.0)
    together = upper_bounds(sums_CI, asked_I)
    assert np.array_equal(together, upper_bounds(sums_CI, asked_I))
    for loss, expected in zip(sums_CI, together, strict=True):
        assert upper_bounds(loss[None], asked_I)[0] == pytest.approx(expected, abs=1e-12)
    assert draws(50).shape == (10_000, 50)


def test_sums_of_each_image():
    sums_CI, asked_I = per_image(np.array([[1.0, 0.5, 0.25], [0, 1, 1]]), np.array([2, 0, 2]), 4)
    assert sums_CI.tolist() == [[0.5, 0, 1.25, 0], [1, 0, 1, 0]]
    assert asked_I.tolist() == [1, 0, 2, 0]
