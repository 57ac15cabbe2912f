"""ANLS: how few characters differ (Biten et al., Scene Text VQA, arXiv 1905.13648, equation 1)."""

from collections.abc import Sequence

from pipeline.grading.metrics.metric import Metric


def edit_distance(one: str, other: str, most: int) -> int | None:
    """The number of characters to insert, delete or replace to make one text of the other (Levenshtein).

    Args:
        one: a text.
        other: to be made of it.
        most: None is returned beyond so many. Cells of the table that lie farther from its diagonal are left out, and
            so is the rest of it when a whole row is beyond (Ukkonen 1985).
    """
    if abs(len(one) - len(other)) > most:
        return None
    if one == other:
        return 0
    beyond = most + 1
    above = [column if column <= most else beyond for column in range(len(other) + 1)]
    for row, sign in enumerate(one, start=1):
        begin, end = max(1, row - most), min(len(other), row + most)
        line = [beyond] * (len(other) + 1)
        line[0] = min(row, beyond)
        for column in range(begin, end + 1):
            replaced = above[column - 1] + (sign != other[column - 1])
            line[column] = min(above[column] + 1, line[column - 1] + 1, replaced, beyond)
        if min(line[begin - 1 : end + 1]) == beyond:
            return None
        above = line
    return above[-1] if above[-1] <= most else None


def _similarity(answer: str, reference: str) -> float:
    """0 where it is below one half: so many edits need not be counted to the end."""
    one, other = (" ".join(text.lower().split()) for text in (answer, reference))
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    edits = edit_distance(one, other, longest // 2)
    return 0.0 if edits is None else 1 - edits / longest


def score(answer: str, references: Sequence[str]) -> float:
    """The similarity with the nearest reference, 0 where it is below one half."""
    return max(_similarity(answer, reference) for reference in references)


ANLS = Metric("anls", "normalised Levenshtein similarity", score)
