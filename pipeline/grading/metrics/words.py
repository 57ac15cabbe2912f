"""The words of a caption, for metrics that count them.

Lower case; punctuation is dropped; "dog's" is two words, "dog" and "'s", and "isn't" is "is" and "n't"; a hyphen joins
("t-shirt" is one), and so do points and commas within a number ("3,000.5"). That is what the tokeniser of the Penn
Treebank, by which captions are mostly graded, does to plain captions. Other signs ("%", "&") are words of their own.
"""

import re
from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4
Ngram = tuple[str, ...]
_APOSTROPHES = str.maketrans("’‘", "''")
_PUNCTUATION = frozenset(".?!,:;…'\"`´“”«»-–—()[]{}¿¡")
_WORD = re.compile(
    r"\w+?(?=n't\b)|n't\b"  # "is", "n't"
    r"|'(?:s|m|d|re|ve|ll)\b"
    r"|\d+(?:[.,]\d+)+"
    r"|\w+(?:-\w+)*"
    r"|[^\w\s]"
)


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    found: list[str] = _WORD.findall(text.lower().translate(_APOSTROPHES))
    return [word for word in found if word not in _PUNCTUATION]


def ngrams(of: Sequence[str]) -> Counter[Ngram]:
    """How often each sequence of one to four words occurs among these words."""
    return Counter(
        tuple(of[begin : begin + order])
        for order in range(1, MAX_ORDER + 1)
        for begin in range(len(of) - order + 1)
    )  # fmt: skip
