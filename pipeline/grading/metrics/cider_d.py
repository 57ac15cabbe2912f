"""CIDEr-D: word sequences shared with the references, rare ones counting more (Vedantam et al., arXiv 1411.5726).

For sequences of n = 1 to 4 words, with h(s) and r(s) how often the answer and a reference hold s, N prompts, and df(s)
of them with s in a reference (at least 1):

    w(s) = log N - log df(s)
    sim_n = sum_s min(h(s), r(s)) r(s) w(s)² / (|h w| |r w|) * exp(-(words of answer - of reference)² / (2 * 6²))
    score = 10 * mean over n of the mean over references of sim_n

A score lies between 0 and 10. It depends on which prompts are graded together, through N and df.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.grading.metrics.metric import Metric
from pipeline.grading.metrics.words import MAX_ORDER, Ngram, ngrams, words

_SIGMA = 6.0  # words
_SCALE = 10.0


@dataclass
class Frequencies:
    """In how many prompts' references each sequence of words occurs."""

    prompts: int = 0
    of: Counter[Ngram] = field(default_factory=Counter)

    def add(self, references: Sequence[str]) -> None:
        """Take up the references of one prompt."""
        self.prompts += 1
        self.of.update({ngram for reference in references for ngram in ngrams(words(reference))})

    def score(self, answer: str, references: Sequence[str]) -> float:
        """CIDEr-D of an answer, from 0 to 10."""
        said = words(answer)
        found = self._weighted(ngrams(said))
        total = sum(self._similarity(len(said), found, words(reference)) for reference in references)
        return _SCALE * total / MAX_ORDER / len(references)

    def _weighted(self, counts: Counter[Ngram]) -> list[dict[Ngram, float]]:
        """The weighted counts of the sequences of one to four words."""
        of_all = math.log(self.prompts)
        by_order: list[dict[Ngram, float]] = [{} for _ in range(MAX_ORDER)]
        for ngram, number in counts.items():
            by_order[len(ngram) - 1][ngram] = number * (of_all - math.log(max(1, self.of[ngram])))
        return by_order

    def _similarity(self, num_words: int, found: list[dict[Ngram, float]], reference: list[str]) -> float:
        """The sum over the four lengths of what the answer has in common with one reference."""
        given = self._weighted(ngrams(reference))
        near = math.exp(-((num_words - len(reference)) ** 2) / (2 * _SIGMA**2))
        return near * sum(_clipped_cosine(*pair) for pair in zip(found, given, strict=True))


def _clipped_cosine(found: dict[Ngram, float], given: dict[Ngram, float]) -> float:
    """The cosine of two vectors, in whose product the first counts no more than the second does."""
    sizes = math.sqrt(sum(x * x for x in found.values())) * math.sqrt(sum(x * x for x in given.values()))
    return sum(min(x, given[ngram]) * given[ngram] for ngram, x in found.items() if ngram in given) / (sizes or 1.0)


CIDER_D = Metric("cider_d", "CIDEr-D of captions, from 0 to 10", None, corpus=Frequencies)
