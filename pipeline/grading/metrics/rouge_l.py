"""ROUGE-L: the longest sequence of words that answer and reference share (Lin, 2004, W04-1013), as captions are graded.

P = longest common subsequence / words of the answer,  R = the same / words of the reference
score = (1 + b²) P R / (R + b² P),  b = 1.2,  with the largest P and the largest R over the references
"""

from collections.abc import Sequence

from pipeline.grading.metrics.metric import Metric
from pipeline.grading.metrics.words import words

_BETA = 1.2  # recall weighs that much more than precision


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence: shared words in the same order, not only side by side."""
    above = [0] * (len(other) + 1)
    for word in one:
        line = [0]
        for column, against in enumerate(other, start=1):
            line.append(above[column - 1] + 1 if word == against else max(above[column], line[-1]))
        above = line
    return above[-1]


def score(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L of an answer."""
    said = words(answer)
    given = [one for one in map(words, references) if one]
    if not said or not given:
        return 0.0
    shared = [longest_common(said, one) for one in given]
    precision = max(shared) / len(said)
    recall = max(found / len(one) for found, one in zip(shared, given, strict=True))
    weight = _BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision) if precision else 0.0


ROUGE_L = Metric("rouge_l", "ROUGE-L of captions", score)
