"""The statistics of paired comparisons, on data whose differences are known."""

import numpy as np
import pytest

from benchmarks.paired import LEVEL, draws, estimate, flipped_p, holm, per_image, verdict

RESAMPLES = 400


def answers(rng: np.random.Generator, num_images: int, gain: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (2, Q) of a method and of one with `gain` more right answers, questions of one image alike; their images.

    Images differ in difficulty, and questions about one image tend to be answered right or wrong together.
    """
    image_Q = np.repeat(np.arange(num_images), rng.integers(1, 8, num_images))
    ease_Q = rng.uniform(0.2, 0.6, num_images)[image_Q]
    luck_Q = np.where(rng.random(len(image_Q)) < 0.7, rng.random(num_images)[image_Q], rng.random(len(image_Q)))
    own_Q = np.where(rng.random(len(image_Q)) < 0.5, luck_Q, rng.random(num_images)[image_Q])
    return np.stack([luck_Q < ease_Q, own_Q < ease_Q + gain]).astype(np.float64), image_Q, ease_Q


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_intervals_of_a_known_difference_cover_it_as_often_as_they_say(gain):
    rng = np.random.default_rng(1)
    covered, simulated = 0, 600
    for _ in range(simulated):
        scores_CQ, image_Q, _ = answers(rng, 80, gain)
        sums_CI, asked_I = per_image(scores_CQ[1:] - scores_CQ[:1], image_Q, 80)
        found = estimate(sums_CI, asked_I, resamples=RESAMPLES)
        covered += bool(found.low_C[0] <= gain <= found.high_C[0])
    assert 0.92 <= covered / simulated <= 0.975  # 95 %, three standard errors of 600 trials and a small sample's loss


def test_questions_of_one_image_are_resampled_together():
    """Taken for independent, questions that repeat one another would give intervals half as wide."""
    rng = np.random.default_rng(2)
    image_Q = np.repeat(np.arange(100), 4)
    difference_Q = rng.choice([-1.0, 0.0, 1.0], 100)[image_Q]
    together = estimate(*per_image(difference_Q[None], image_Q, 100), resamples=RESAMPLES)
    apart = estimate(*per_image(difference_Q[None], np.arange(400), 400), resamples=RESAMPLES)
    ratio = (together.high_C - together.low_C) / (apart.high_C - apart.low_C)
    assert ratio[0] == pytest.approx(2, abs=0.3)


def test_pairing_takes_out_what_is_common():
    """Two methods that differ in one answer of 200: their own intervals overlap, their difference is narrow."""
    rng = np.random.default_rng(3)
    scores_Q = (rng.random(200) < 0.5).astype(np.float64)
    scores_Q[7] = 0
    better_Q = scores_Q.copy()
    better_Q[7] = 1
    image_Q = np.arange(200)
    both = estimate(*per_image(np.stack([scores_Q, better_Q]), image_Q, 200), resamples=RESAMPLES)
    difference = estimate(*per_image((better_Q - scores_Q)[None], image_Q, 200), resamples=RESAMPLES)
    assert both.low_C[1] < both.value_C[0]
    assert difference.value_C[0] == pytest.approx(1 / 200)
    assert difference.high_C[0] - difference.low_C[0] < 0.2 * (both.high_C[0] - both.low_C[0])


def test_values_are_shares_of_all_questions_and_not_means_of_images():
    sums_CI = np.array([[4.0, 0.0, 0.0]])
    found = estimate(sums_CI, np.array([4.0, 1.0, 0.0]), resamples=RESAMPLES)
    assert found.value_C[0] == 4 / 5
    # Of two images with questions, resamples hold the first twice, once or never; the third is never drawn.
    assert {float(found.low_C[0]), float(found.high_C[0])} == {0.0, 1.0}


def test_sums_by_image():
    sums_CI, asked_I = per_image(np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]]), np.array([2, 0, 2]), 4)
    assert sums_CI.tolist() == [[0, 0, 1.5, 0], [1, 0, 1, 0]]
    assert asked_I.tolist() == [1, 0, 2, 0]


def test_resamples_are_the_same_every_time_and_draw_as_many_images_as_there_are():
    draws.cache_clear()
    first = draws(50, 20).copy()
    draws.cache_clear()
    assert (draws(50, 20) == first).all()
    assert (first.sum(1) == 50).all()
    assert not (draws(50, 20, seed=1) == first).all()


def test_equal_scores_are_equal_however_they_are_rounded():
    """0.1 + 0.2 - 0.3 is 5.6e-17, which is no difference."""
    noise_I = np.full(30, 0.1 + 0.2 - 0.3)
    found = estimate(noise_I[None], np.ones(30), resamples=RESAMPLES)
    assert verdict(found.low_C[0], found.high_C[0]) == "equal"
    assert found.p_C[0] == 1


def test_nothing_asked_is_refused():
    with pytest.raises(ValueError, match="no image has a question"):
        estimate(np.zeros((1, 3)), np.zeros(3))


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 2, "better"), (-2, -0.1, "worse"), (-1, 1, "equal"), (0, 1, "equal")]
)
def test_verdicts(low, high, word):
    assert verdict(low, high) == word


def test_p_values_agree_with_the_interval_and_are_uniform_without_a_difference():
    rng = np.random.default_rng(4)
    found = estimate(rng.normal(size=(500, 60)), np.ones(60), resamples=RESAMPLES)
    excludes_zero = (found.low_C > 0) | (found.high_C < 0)
    assert ((found.p_C < 0.05) == excludes_zero).mean() >= 0.98
    assert 0.02 < excludes_zero.mean() < 0.09
    assert found.p_C.mean() == pytest.approx(0.5, abs=0.05)


def test_few_images_that_differ_give_no_small_p_values():
    """A table of 60 cells asks for p-values of 0.05 / 60: where nothing differs, so many of them must be as small."""
    rng, cells, level = np.random.default_rng(6), 4000, (1 - LEVEL) / 60
    asked_I = rng.integers(4, 13, 154).astype(np.float64)
    sign_CI = rng.choice([-1.0, 0.0, 1.0], (cells, 154), p=[0.03, 0.94, 0.03])
    parts = np.split(sign_CI * asked_I, 8)  # nine images of a cell differ, in all of their questions
    false = sum(int((estimate(part, asked_I, resamples=4000).p_C <= level).sum()) for part in parts)
    assert false <= 2 * level * cells  # 3 to expect of a test that keeps what it says, 13 of the bootstrap alone


def test_p_values_of_signs_by_hand():
    """Of three images the signs all agree in one case of four; of those that do not differ they say nothing."""
    assert flipped_p(np.array([[2.0, 1.0, 4.0], [2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])) == pytest.approx(
        [1 / 4, 1, 1], abs=0.02
    )


def test_holm_by_hand():
    assert holm([0.012, 0.04, 0.013, 0.6]) == [True, False, True, False]  # against 0.05 / 4, 0.05 / 3, 0.05 / 2
    assert holm([0.013, 0.014, 0.015, 0.016]) == [False] * 4  # the smallest is over 0.05 / 4, so none
    assert holm([]) == []


def test_holm_seldom_errs_among_many():
    rng = np.random.default_rng(5)
    wrong = sum(any(holm(list(rng.random(80)))) for _ in range(1000))
    assert wrong / 1000 < 0.08
