"""Exact match after normalisation."""

import pytest

from pipeline.answer.grade import is_correct, normalise


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("  Two  RED\n balls. ", ["two red balls"], True),
        ("red", ["blue", "Red!"], True),
        ("reddish", ["red"], False),
        ("", ["red"], False),
        ("red", [], None),
        ("red", None, None),
    ],
)
def test_an_answer_is_right_when_it_equals_a_reference(answer, references, expected):
    assert is_correct(answer, references) is expected


def test_punctuation_within_stays():
    assert normalise("It's 3.5 m.") == "it's 3.5 m"
