"""Relaxed accuracy: numbers may differ by 5 %, all else must be equal (Masry et al., ChartQA, arXiv 2203.10244)."""

import re
from collections.abc import Sequence

from pipeline.grading.metrics.metric import Metric

_TOLERANCE = 0.05  # of the reference
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?")


def _number(text: str) -> float | None:
    """The number that a text is, one in percent as the share; None where it is none."""
    digits = text.removesuffix("%").rstrip()
    if not _NUMBER.fullmatch(digits):
        return None
    return float(digits) / (100 if text.endswith("%") else 1)


def _is_right(answer: str, reference: str) -> bool:
    said, right = (text.strip().lower() for text in (answer, reference))
    number, expected = _number(said), _number(right)
    if number is None or not expected:
        return said == right
    return abs(number - expected) / abs(expected) <= _TOLERANCE


def score(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals a reference, as a number within 5 % of it, else 0."""
    return float(any(_is_right(answer, reference) for reference in references))


RELAXED = Metric("relaxed", "equal, numbers within 5 %", score)
