"""Scores of made-up methods, of which it is known how often each is right."""

import numpy as np

from benchmarks.comparison import Scores
from benchmarks.graded_corpus import GradedPrompt

IMAGES = 60
RUNS = [("zoo", 0), ("good", 0), ("bad", 0), ("random", 0), ("random", 1), ("pooling", 0)]
TOKENS = (64, 32)
RIGHT = {"zoo": 0.6, "good": 0.8, "bad": 0.3, "random": 0.6, "pooling": 0.6}


def prompts() -> list[GradedPrompt]:
    """Three plain questions about every image, two in clutter about every other."""
    asked = []
    for image in range(IMAGES):
        plain = [GradedPrompt(str(image), "?", ["x"], "plain", kind) for kind in ("color", "count", "caption")]
        cluttered = [GradedPrompt(str(image), "?", ["x"], "cluttered", kind) for kind in ("color", "digit")]
        asked += plain + (cluttered if image % 2 else [])
    return asked


def scores(seed: int = 0) -> Scores:
    asked = prompts()
    rng = np.random.default_rng(seed)
    full_Q = np.ones(len(asked))
    luck_Q = rng.random(len(asked))
    scores_RBQ = np.stack([[luck_Q < RIGHT[name]] * len(TOKENS) for name, _ in RUNS]).astype(np.float64)
    scores_RBQ[4] = rng.random(scores_RBQ[4].shape) < RIGHT["random"]  # the second seed draws anew
    scores_RBQ[5, 1] = np.nan  # no pooling at 32
    return Scores(full_Q, scores_RBQ)
