"""What a metric is: how one answer is scored, and what the scores of many come to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Score = Callable[[str, Sequence[str]], float | None]
Counts = tuple[int, ...]
# Of some answers: their number, the sum of their scores, the sums of their counts.
Measure = Callable[[float, float, Sequence[float]], float]


class Corpus(Protocol):
    """What scores of a metric depend on beyond the answer and its references: all references together."""

    def add(self, references: Sequence[str]) -> None:
        """Take up the references of one prompt."""

    def score(self, answer: str, references: Sequence[str]) -> float | None:
        """The score of an answer, after the references of all prompts were added."""


def mean(number: float, total: float, _counts: Sequence[float]) -> float:
    """The mean of the scores."""
    return total / number


@dataclass(frozen=True)
class Metric:
    """One way to score answers."""

    name: str
    about: str  # a few words for the help
    score: Score | None  # of an answer by its references; None where it takes all references, see `corpus`
    min_references: int = 1  # a prompt with fewer has no score
    takes: Callable[[Sequence[str]], bool] | None = None  # whether it can score by these; None: by any
    counts: Callable[[str, Sequence[str]], Counts] | None = None  # of an answer, that measures need beside its score
    measures: dict[str, Measure] = field(default_factory=lambda: {"mean": mean})  # by name, the one people quote first
    corpus: Callable[[], Corpus] | None = None  # begins an empty one

    def can_score(self, references: Sequence[str] | None) -> bool:
        """Whether there are as many references as it takes, and such as it takes."""
        if not references or len(references) < self.min_references:
            return False
        return self.takes is None or self.takes(references)
