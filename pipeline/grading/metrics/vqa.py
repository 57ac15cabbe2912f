"""VQA accuracy: how many people gave the answer, with each of them left out in turn.

Antol et al., VQA: Visual Question Answering, arXiv 1505.00468, and the evaluation code of VQAv2 and of TextVQA.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from pipeline.grading.metrics.metric import Metric

_FEW = 3  # people who must agree with an answer for the full score
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(digit) for digit, word in enumerate(_NUMBERS)}}
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll
you're you've
"""


def _misspelt() -> dict[str, str]:
    """The contraction that is meant, by each form of it that lacks one apostrophe."""
    forms = {}
    for right in _CONTRACTIONS.split():
        for place, sign in enumerate(right):
            if sign == "'":
                forms[right[:place] + right[place + 1 :]] = right
    return forms


_MEANT = _misspelt()


def _without_punctuation(text: str) -> str:
    """Punctuation dropped beside a space, or anywhere if digits are grouped by commas; else a space in its place."""
    grouped = re.search(r"\d,+\d", text) is not None
    left = text
    for sign in _PUNCTUATION:
        left = left.replace(sign, "" if grouped or f"{sign} " in text or f" {sign}" in text else " ")
    return re.sub(r"\.(?!\d)", "", left)


@lru_cache(maxsize=1 << 16)  # people give the same answers to many prompts
def processed(answer: str) -> str:
    """An answer as it is compared: lower case, without punctuation and articles, numbers up to ten as digits."""
    text = _without_punctuation(re.sub(r"[\n\t]", " ", answer).strip())
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_MEANT.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def _processed_for_text(answer: str) -> str:
    """As `processed`, after commas and question marks are dropped and a possessive became a word, as TextVQA has it."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return processed(text)


def _leave_one_out(answer: str, given: Sequence[str]) -> float:
    """The mean over the people of min(1, those of the others who gave the answer / 3)."""
    same = Counter(given)[answer]
    of_one_who_did, of_one_who_did_not = min(1.0, (same - 1) / _FEW), min(1.0, same / _FEW)
    return (same * of_one_who_did + (len(given) - same) * of_one_who_did_not) / len(given) if same else 0.0


def score(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy; each reference is what one person said."""
    return _leave_one_out(processed(answer), [processed(reference) for reference in references])


def score_text(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy as TextVQA's code processes answers."""
    return _leave_one_out(_processed_for_text(answer), [_processed_for_text(reference) for reference in references])


VQA = Metric("vqa", "VQA accuracy", score, min_references=_FEW + 1)
TEXTVQA = Metric("textvqa", "VQA accuracy with TextVQA's processing", score_text, min_references=_FEW + 1)
