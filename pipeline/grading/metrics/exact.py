"""Equality with a reference, but for case, white space, and punctuation at both ends."""

import re
import string
from collections.abc import Sequence

from pipeline.grading.metrics.metric import Metric

_EDGES = string.punctuation + string.whitespace


def normalise(text: str) -> str:
    """The text with its case folded, white space collapsed, and punctuation at both ends dropped."""
    return re.sub(r"\s+", " ", text.casefold()).strip(_EDGES)


def is_correct(answer: str, references: Sequence[str] | None) -> bool | None:
    """Whether the answer equals a reference, or None where there is no reference to compare with."""
    if not references:
        return None
    return normalise(answer) in {normalise(reference) for reference in references}


def score(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals a reference, else 0."""
    return float(bool(is_correct(answer, references)))


EXACT = Metric("exact", "equal to a reference", score)
