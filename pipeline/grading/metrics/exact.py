"""Equality with a reference, but for case, white space, and punctuation at both ends."""

import re
import string
import unicodedata
from collections.abc import Sequence

from pipeline.grading.metrics.metric import Metric

# What belongs to a value is no punctuation: -5, $5, #3, <5, .5, 5%, c++.
_VALUE_BEGINS = re.compile(r"[-+$#<>]?\.?\d")
_VALUE_ENDS = re.compile(r"[\w%+#][%+#]")


def _is_edge(character: str) -> bool:
    """Whether it is punctuation, of whatever script, or white space."""
    return character in string.punctuation or character.isspace() or unicodedata.category(character).startswith("P")


def normalise(text: str) -> str:
    """The text with its case folded, white space collapsed, and punctuation at both ends dropped.

    What belongs to a value stays (`-5`, `$5`, `5%`, `c++`), and so does a text of nothing but punctuation.
    """
    folded = re.sub(r"\s+", " ", text.casefold()).strip()
    start, end = 0, len(folded)
    while start < end and _is_edge(folded[start]) and not _VALUE_BEGINS.match(folded, start):
        start += 1
    while end > start and _is_edge(folded[end - 1]) and not _VALUE_ENDS.fullmatch(folded, max(end - 2, start), end):
        end -= 1
    return folded[start:end] or folded


def is_correct(answer: str, references: Sequence[str] | None) -> bool | None:
    """Whether the answer equals a reference, or None where there is no reference to compare with."""
    if not references:
        return None
    return normalise(answer) in {normalise(reference) for reference in references}


def score(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals a reference, else 0."""
    return float(bool(is_correct(answer, references)))


EXACT = Metric("exact", "equal to a reference", score)
