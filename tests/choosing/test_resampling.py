"""The bound on a loss: how often a budget whose true loss is exactly the tolerance would be called safe."""

import numpy as np
import pytest
from scipy import stats

from pipeline.choosing.resampling import draws, interval, per_image, resampled, upper_bounds

RUNS = 500
RESAMPLES = 2000


def one_prompt(rng: np.random.Generator, images: int, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Each image has one prompt, which is lost or not."""
    return (rng.random((RUNS, images)) < loss).astype(float), np.ones(images)


def all_or_none(rng: np.random.Generator, images: int, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Each image has four prompts, which are lost together."""
    return 4.0 * (rng.random((RUNS, images)) < loss), np.full(images, 4.0)


def correlated(rng: np.random.Generator, images: int, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """One to eight binary prompts an image; right ones are lost, and wrong ones won, nearly together."""
    asked_I = rng.integers(1, 9, images)
    won, strength = 0.02, 0.2  # of a beta distribution: the correlation within an image is 1 / (1 + strength)
    lost_RI = rng.beta(strength * (loss + won), strength * (1 - loss - won), (RUNS, images))
    won_RI = rng.beta(strength * won, strength * (1 - won), (RUNS, images))
    return (rng.binomial(asked_I, lost_RI) - rng.binomial(asked_I, won_RI)).astype(float), asked_I.astype(float)


def large_images(rng: np.random.Generator, images: int, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Only images with many prompts lose any, and then all."""
    asked_I = np.where(np.arange(images) % 5 == 0, 10.0, 2.0)
    is_large_I = asked_I > 2
    chance = loss * asked_I.sum() / asked_I[is_large_I].sum()
    return asked_I * (is_large_I & (rng.random((RUNS, images)) < chance)), asked_I


CASES = [
    *[(make, images) for make in (one_prompt, all_or_none, correlated) for images in (30, 100, 500)],
    *[(large_images, images) for images in (100, 500)],
]


@pytest.mark.parametrize(("make", "images"), CASES)
def test_a_loss_at_the_tolerance_is_seldom_called_safe(make, images):
    tolerance = 0.02 if images > 30 else 0.05
    sums_RI, asked_I = make(np.random.default_rng(images), images, tolerance)
    bounds_R = upper_bounds(sums_RI, asked_I, resamples=RESAMPLES)
    assert (bounds_R <= tolerance).mean() <= 0.07


def test_the_percentile_bootstrap_would_call_it_safe_too_often():
    """Why there is a bound of its own: a sample that lost nothing can't be resampled into one that did."""
    sums_RI, asked_I = all_or_none(np.random.default_rng(0), 100, 0.02)
    _, high_R = interval(resampled(sums_RI, asked_I, resamples=RESAMPLES), level=0.9)
    assert (high_R <= 0.02).mean() > 0.1


@pytest.mark.parametrize(("lost", "images"), [(0, 40), (1, 100), (7, 300)])
def test_of_images_that_are_lost_or_not_it_is_the_clopper_pearson_bound(lost, images):
    sums_I = np.zeros(images)
    sums_I[:lost] = 3
    (bound,) = upper_bounds(sums_I[None], np.full(images, 3.0), resamples=100_000)
    assert bound == pytest.approx(stats.beta.ppf(0.95, lost + 1, images - lost), rel=0.02)


def test_a_bound_has_power():
    """A loss of half a point is called safe at two points with 500 images, mostly."""
    sums_RI, asked_I = correlated(np.random.default_rng(5), 500, 0.0)
    assert (upper_bounds(sums_RI[:100], asked_I, resamples=RESAMPLES) <= 0.02).mean() > 0.5


def test_the_same_numbers_every_time_and_for_each_loss_alone():
    rng = np.random.default_rng(2)
    sums_CI, asked_I = rng.normal(0, 0.1, (3, 50)), np.full(50, 2.0)
    together = upper_bounds(sums_CI, asked_I)
    assert np.array_equal(together, upper_bounds(sums_CI, asked_I))
    for loss, bound in zip(sums_CI, together, strict=True):
        assert upper_bounds(loss[None], asked_I)[0] == pytest.approx(bound, abs=1e-12)
    assert draws(50).shape == (10_000, 50)


def test_sums_of_each_image():
    sums_CI, asked_I = per_image(np.array([[1.0, 0.5, 0.25], [0, 1, 1]]), np.array([2, 0, 2]), 4)
    assert sums_CI.tolist() == [[0.5, 0, 1.25, 0], [1, 0, 1, 0]]
    assert asked_I.tolist() == [1, 0, 2, 0]
