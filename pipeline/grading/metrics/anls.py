"""ANLS: how few characters differ (Biten et al., Scene Text VQA, arXiv 1905.13648, equation 1)."""

from collections.abc import Sequence

from pipeline.grading.metrics.metric import Metric

_LEAST = 0.5  # similarity below it counts as none


def edit_distance(one: str, other: str) -> int:
    """The number of characters to insert, delete or replace to make one text of the other (Levenshtein)."""
    above = list(range(len(other) + 1))
    for row, sign in enumerate(one, start=1):
        line = [row]
        for column, against in enumerate(other, start=1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (sign != against)))
        above = line
    return above[-1]


def _similarity(answer: str, reference: str) -> float:
    one, other = (" ".join(text.lower().split()) for text in (answer, reference))
    longest = max(len(one), len(other))
    return 1 - edit_distance(one, other) / longest if longest else 1.0


def score(answer: str, references: Sequence[str]) -> float:
    """The similarity with the nearest reference, 0 where it is below one half."""
    best = max(_similarity(answer, reference) for reference in references)
    return best if best >= _LEAST else 0.0


ANLS = Metric("anls", "normalised Levenshtein similarity", score)
