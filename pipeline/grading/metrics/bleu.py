"""BLEU-4: the share of an answer's word sequences that a reference has (Papineni et al., ACL 2002, P02-1040).

BLEU is of a corpus: the counts of all answers are added up, then compared.

    BLEU = exp(min(0, 1 - r / c)) (p1 p2 p3 p4)^(1/4),    p_n = sum of clipped matches of n words / sum of n-grams

c: words of all answers; r: those of the references, for each answer the one of nearest length, of two the shorter.
"""

import math
from collections import Counter
from collections.abc import Sequence

from pipeline.grading.metrics.metric import Counts, Metric, mean
from pipeline.grading.metrics.words import MAX_ORDER, Ngram, ngrams, words


def counts(answer: str, references: Sequence[str]) -> Counts:
    """Words of the answer, words of the reference, matches of one to four words, sequences of one to four words."""
    said = words(answer)
    given = [words(reference) for reference in references]
    nearest = min((abs(len(one) - len(said)), len(one)) for one in given)[1]
    most: Counter[Ngram] = Counter()
    for one in given:
        most |= ngrams(one)
    found = ngrams(said) & most
    matches = Counter({order: 0 for order in range(1, MAX_ORDER + 1)})
    for ngram, number in found.items():
        matches[len(ngram)] += number
    sequences = (max(0, len(said) - order + 1) for order in range(1, MAX_ORDER + 1))
    return (len(said), nearest, *(matches[order] for order in range(1, MAX_ORDER + 1)), *sequences)


def _brevity(said: float, given: float) -> float:
    return math.exp(min(0.0, 1 - given / said)) if said else 0.0


def of_corpus(_number: float, _total: float, sums: Sequence[float]) -> float:
    """BLEU from the sums of the counts; 0 where no sequence of some length matches."""
    said, given, *rest = sums
    matches, sequences = rest[:MAX_ORDER], rest[MAX_ORDER:]
    if not all(matches):
        return 0.0
    logs = (math.log(match / of) for match, of in zip(matches, sequences, strict=True))
    return _brevity(said, given) * math.exp(sum(logs) / MAX_ORDER)


def score(answer: str, references: Sequence[str]) -> float:
    """BLEU of one answer, smoothed as corpus BLEU needs not be.

    The n-th length without a match counts as half, a quarter ... of one; lengths beyond the answer's own do not count.
    """
    said, given, *rest = counts(answer, references)
    matches, sequences = rest[:MAX_ORDER], rest[MAX_ORDER:]
    orders = min(said, MAX_ORDER)
    if not any(matches):
        return 0.0
    logs, share = 0.0, 1.0
    for match, of in zip(matches[:orders], sequences[:orders], strict=True):
        share /= 1 if match else 2
        logs += math.log((match or share) / of)
    return _brevity(said, given) * math.exp(logs / orders)


BLEU = Metric("bleu", "BLEU-4 of captions", score, counts=counts, measures={"corpus": of_corpus, "mean": mean})
