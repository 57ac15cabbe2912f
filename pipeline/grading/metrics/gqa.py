"""GQA accuracy: equality of the words, whatever their case and punctuation (Hudson and Manning, arXiv 1902.09506)."""

import string
from collections.abc import Sequence

from pipeline.grading.metrics.metric import Metric

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(text: str) -> list[str]:
    return text.lower().translate(_NO_PUNCTUATION).split()


def score(answer: str, references: Sequence[str]) -> float:
    """1 where the words of the answer are those of a reference, else 0."""
    return float(_words(answer) in [_words(reference) for reference in references])


GQA = Metric("gqa", "equal to a reference but for punctuation", score)
