"""How good a generated answer is: equal to a reference, or a score between 0 and 1 by a metric."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_EDGES = string.punctuation + string.whitespace
# What belongs to a value is no punctuation: -5, $5, #3, 5%, c++.
_VALUE_BEGINS = re.compile(r"[-+$#]\.?\d")
_VALUE_ENDS = re.compile(r"[\w%+#][%+#]")
_BETWEEN_OBJECTS = frozenset({"a", "an", "the", "and"})


def normalise(text: str) -> str:
    """The text with its case folded, white space collapsed, and punctuation at both ends dropped.

    What belongs to a value stays (`-5`, `$5`, `5%`, `c++`), and so does a text of nothing but punctuation.
    """
    folded = re.sub(r"\s+", " ", text.casefold()).strip()
    start, end = 0, len(folded)
    while start < end and folded[start] in _EDGES and not _VALUE_BEGINS.match(folded, start):
        start += 1
    while end > start and folded[end - 1] in _EDGES and not _VALUE_ENDS.fullmatch(folded, max(end - 2, start), end):
        end -= 1
    return folded[start:end] or folded


def is_correct(answer: str, references: Sequence[str] | None) -> bool | None:
    """Whether the answer equals a reference, or None where there is no reference to compare with."""
    if not references:
        return None
    return normalise(answer) in {normalise(reference) for reference in references}


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


def _exact(answer: str, references: Sequence[str]) -> float:
    return float(bool(is_correct(answer, references)))


def _object_f1(answer: str, references: Sequence[str]) -> float:
    return max(object_score(answer, reference).f1 for reference in references)


EXACT = "exact"
METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {EXACT: _exact, "object_f1": _object_f1}


@dataclass(frozen=True)
class Grader:
    """Which metric scores the answers to prompts of which type. default: of the types that `by_type` does not name."""

    default: str = EXACT
    by_type: dict[str, str] = field(default_factory=dict)

    def metric(self, prompt_type: str | None) -> str:
        """The metric's name for prompts of this type."""
        return self.by_type.get(prompt_type or "", self.default)

    def score(self, answer: str, references: Sequence[str] | None, prompt_type: str | None) -> float | None:
        """From 0 to 1, or None where there is no reference to compare with; of several references the best counts."""
        return METRICS[self.metric(prompt_type)](answer, references) if references else None


def parse_metrics(texts: Sequence[str]) -> Grader:
    """The grader that texts such as "exact" and "caption=object_f1" describe; a later text overrules an earlier one.

    Raises:
        ValueError: a metric that there is not, or a type without a name; begins with the text.
    """
    default, by_type = EXACT, {}
    for text in texts:
        prompt_type, is_of_type, name = text.rpartition("=")
        if name not in METRICS or (is_of_type and not prompt_type):
            raise ValueError(f"{text}: expected NAME or TYPE=NAME, with one of {', '.join(METRICS)} as NAME")
        if is_of_type:
            by_type[prompt_type] = name
        else:
            default = name
    return Grader(default, by_type)
