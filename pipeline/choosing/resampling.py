"""Resampling of images with all of their prompts, and the bound on a loss by which a budget is called safe.

Prompts about one image are not independent, so images are resampled, each with all of its prompts. Image i has n_i
prompts and d_i, the sum over them of the score with all tokens less that at the budget. A resample gives image i the
weight w_i and estimates

    loss    sum_i w_i d_i / sum_i w_i n_i

For intervals that describe, w_i is how often the image is drawn of I (`draws`). For the bound that decides, the weights
are those of the Bayesian bootstrap (Rubin 1981), w_i ~ Exponential(1), over the sample and one image more, which was
not seen: it has m prompts and loses all of them,

    bound   95 % quantile of  (w_0 m + sum_i w_i d_i) / (w_0 m + sum_i w_i n_i),    m = sum_i n_i^2 / sum_i n_i

where m is the size of the image that a prompt drawn at random is about. For images that are either lost or not this is
the Clopper-Pearson bound, exactly; in general it is Gaffke's bound for means of bounded variables (2005; Learned-Miller
and Thomas 2020), here of d_i - tolerance * n_i. Without that image a bootstrap can only lose what the sample has lost:
where losses are rare, a sample without any is common and would prove that there are none.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 1 << 22  # weights that are drawn at a time


@lru_cache(maxsize=64)  # bytes, since groups of questions come by turns
def draws(num_images: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.uint8]:
    """How often each of the images is drawn in each resample (resamples, images): always the same."""
    shares = np.full(num_images, 1 / num_images)
    return np.random.default_rng(seed).multinomial(num_images, shares, resamples).astype(np.uint8)


def resampled(sums_CI: Floats, asked_I: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Bootstrap estimates (C, resamples) of C ratios over the same images, all of which have prompts."""
    drawn_RI = draws(len(asked_I), resamples, seed).astype(np.float64)
    resampled_CR = sums_CI @ drawn_RI.T / (drawn_RI @ asked_I)
    # Sums of scores such as 1/3 are zero but for rounding, which must not decide on which side of zero they lie.
    return np.round(resampled_CR, 9)


def interval(resampled_CR: Floats, level: float = LEVEL) -> tuple[Floats, Floats]:
    """The percentile interval of each ratio, low and high."""
    tail = 100 * (1 - level) / 2
    low_C, high_C = (np.percentile(resampled_CR, share, axis=1).astype(np.float64) for share in (tail, 100 - tail))
    return low_C, high_C


def upper_bounds(
    sums_CI: Floats, asked_I: Floats, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """The bound (C,) that each of C losses does not exceed, with this confidence; see the top of this file.

    Args:
        sums_CI: sums of the losses of each image's prompts, each loss from -1 to 1.
        asked_I: number of prompts about each image, at least 1.
        level: confidence of each bound.
        resamples: as many weights are drawn of each image.
        seed: of the weights; all losses share them.
    """
    unseen = float(np.square(asked_I).sum() / asked_I.sum())
    sums_CJ = np.concatenate([sums_CI, np.full((len(sums_CI), 1), unseen)], axis=1)
    asked_J = np.append(asked_I, unseen)
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(asked_J))
    parts = []
    for begin in range(0, resamples, step):
        weights_RJ = random.standard_exponential((min(step, resamples - begin), len(asked_J)))
        parts.append(sums_CJ @ weights_RJ.T / (weights_RJ @ asked_J))
    return np.quantile(np.concatenate(parts, axis=1), level, axis=1, method="higher")


def per_image(scores_CQ: Floats, image_Q: NDArray[np.int64], num_images: int) -> tuple[Floats, Floats]:
    """Sums of scores (C, I) and numbers of prompts (I,) of every image; `image_Q` says which image each is about."""
    sums_CI = np.stack([np.bincount(image_Q, scores_Q, num_images) for scores_Q in scores_CQ]).astype(np.float64)
    return sums_CI, np.bincount(image_Q, minlength=num_images).astype(np.float64)
