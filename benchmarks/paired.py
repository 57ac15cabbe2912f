"""Paired comparison of methods that answered the same questions about the same images.

Questions about one image are not independent, so images are resampled, each with all of its questions (cluster
bootstrap). A group of questions has for every image i the number n_i of its questions and for every method the sum s_i
of their scores, and a resample that draws image i c_i times estimates

    score        sum_i c_i s_i / sum_i c_i n_i
    difference   sum_i c_i (s_i - t_i) / sum_i c_i n_i        t_i: the sum of the method compared with

All methods share the resamples, so what is common to two of them cancels out of their difference.

The p-value of a difference is the larger of two: how far the resamples reach beyond zero, and how often the sum of the
images' differences is as large when each of them may as well have the other sign, which holds for two methods that are
alike. Where few images differ, the first alone is too small at the strict levels that Holm's procedure asks for: nine
images that differ as a whole gave a false star in one table of five.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.choosing.resampling import LEVEL, RESAMPLES, Floats, draws, interval, per_image, resampled

__all__ = ["LEVEL", "RESAMPLES", "Estimates", "draws", "estimate", "holm", "per_image", "verdict"]


@dataclass(frozen=True)
class Estimates:
    """A value per column with its percentile interval and the two-sided p-value of its being zero."""

    value_C: Floats
    low_C: Floats
    high_C: Floats
    p_C: Floats


@lru_cache(maxsize=64)
def flips(num_images: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int8]:
    """A sign for each of the images in each resample (resamples, images), 1 or -1: always the same."""
    return np.random.default_rng(seed).integers(0, 2, (resamples, num_images), dtype=np.int8) * 2 - 1


def estimate(sums_CI: Floats, asked_I: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimates:
    """Bootstrap estimates of C ratios over the same I images.

    Args:
        sums_CI: sums of scores, or of differences of scores, over the questions of each image.
        asked_I: number of questions about each image; images without any are left out, so as not to be drawn.

    Raises:
        ValueError: no image has a question.
    """
    with_questions = asked_I > 0
    if not with_questions.any():
        raise ValueError("no image has a question, so there is nothing to estimate")
    sums_CI, asked_I = sums_CI[:, with_questions], asked_I[with_questions]
    resampled_CR = resampled(sums_CI, asked_I, resamples=resamples, seed=seed)
    low_C, high_C = interval(resampled_CR)
    beyond_C = 1 + np.minimum((resampled_CR <= 0).sum(1), (resampled_CR >= 0).sum(1))
    p_C = np.maximum(2 * beyond_C / (resamples + 1), flipped_p(sums_CI, resamples=resamples, seed=seed))
    return Estimates(sums_CI.sum(1) / asked_I.sum(), low_C, high_C, np.minimum(1, p_C))


def flipped_p(sums_CI: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """How often the images' sums (C, I) add up to as much, either way, when each has a sign at random: (C,)."""
    flipped_CR = np.abs(np.round(sums_CI @ flips(sums_CI.shape[1], resamples, seed).T.astype(np.float64), 9))
    as_large_C = (flipped_CR >= np.abs(np.round(sums_CI.sum(1), 9))[:, None]).sum(1)
    return np.asarray((1 + as_large_C) / (resamples + 1))


def verdict(low: float, high: float) -> str:
    """What an interval of differences says: "better" or "worse" where it excludes zero, else "equal"."""
    return "better" if low > 0 else "worse" if high < 0 else "equal"


def holm(p_values: Sequence[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which hypotheses Holm's procedure rejects: the chance of any false rejection among them is at most `level`."""
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    rejected = [False] * len(p_values)
    for rank, n in enumerate(order):
        if p_values[n] > level / (len(order) - rank):
            break
        rejected[n] = True
    return rejected
