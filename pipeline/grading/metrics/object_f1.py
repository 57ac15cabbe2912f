"""Which objects a caption names: F1 of the multiset of their descriptions, in any order."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.grading.metrics.metric import Metric

_BETWEEN_OBJECTS = frozenset({"a", "an", "the", "and"})


@dataclass(frozen=True)
class ObjectScore:
    """How well the objects of a caption fit those of its reference, each share from 0 to 1."""

    precision: float
    recall: float
    f1: float


def named_objects(caption: str) -> Counter[str]:
    """How often a caption names each object, as words such as 'red circle' and 'blue seven'.

    Punctuation, articles and 'and' stand between objects and are no part of them; case does not matter. What is
    no description of any object ('red', 'circle blue') counts as an object all the same, one that no reference has.
    """
    objects: Counter[str] = Counter()
    for phrase in re.split(r"[^\w\s]+", caption.casefold()):
        words: list[str] = []
        for word in [*phrase.split(), "and"]:
            if word not in _BETWEEN_OBJECTS:
                words.append(word)
            elif words:
                objects[" ".join(words)] += 1
                words = []
    return objects


def object_score(answer: str, reference: str) -> ObjectScore:
    """Object precision, recall and F1 of an answer, in any order of the objects.

    An object of the reference is found as often as the answer names it, at most as often as it is there:

        precision = found / named,  recall = found / there,  F1 = 2 found / (named + there)

    An answer without an object scores 0, unless the reference has none either, which scores 1.
    """
    named, there = named_objects(answer), named_objects(reference)
    if not named or not there:
        both = float(not named and not there)
        return ObjectScore(both, both, both)
    found = (named & there).total()
    return ObjectScore(found / named.total(), found / there.total(), 2 * found / (named.total() + there.total()))


def score(answer: str, references: Sequence[str]) -> float:
    """F1 with the reference that the answer fits best."""
    return max(object_score(answer, reference).f1 for reference in references)


OBJECT_F1 = Metric("object_f1", "the objects that a caption lists", score)
