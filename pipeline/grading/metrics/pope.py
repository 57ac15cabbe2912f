"""POPE: is there such an object? Accuracy, F1 of "yes", and the share of "yes" (Li et al., arXiv 2305.10355)."""

import re
from collections.abc import Sequence

from pipeline.grading.metrics.metric import Counts, Metric, mean


def _said(text: str) -> str | None:
    """ "yes" or "no" where that is the first word, else None."""
    first = re.search(r"\w+", text.casefold())
    return first[0] if first and first[0] in ("yes", "no") else None


def takes(references: Sequence[str]) -> bool:
    """Whether the first reference says yes or no."""
    return _said(references[0]) is not None


def score(answer: str, references: Sequence[str]) -> float | None:
    """1 where the answer says what the reference says; None where that is neither yes nor no."""
    return float(_said(answer) == _said(references[0])) if takes(references) else None


def counts(answer: str, references: Sequence[str]) -> Counts:
    """Whether the answer says yes, whether yes is right, whether both."""
    said, right = _said(answer) == "yes", _said(references[0]) == "yes"
    return int(said), int(right), int(said and right)


def _f1(_number: float, _total: float, sums: Sequence[float]) -> float:
    said, right, both = sums
    return 2 * both / (said + right) if said + right else 0.0


def _yes(number: float, _total: float, sums: Sequence[float]) -> float:
    return sums[0] / number


POPE = Metric(
    "pope",
    "yes or no",
    score,
    takes=takes,
    counts=counts,
    measures={"accuracy": mean, "f1": _f1, "share of yes": _yes},
)
