"""Exact match after normalisation, and which metric scores what."""

import pytest

from pipeline.answer.grade import is_correct, normalise, parse_metrics


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


@pytest.mark.parametrize("value", ["-5", "+5", "-.5", "$5", "#3", "5%", "c++", "c#", "?", "..."])
def test_punctuation_that_belongs_to_a_value_stays(value):
    bare = value.strip("-+$#%c?.")
    assert is_correct(bare, [value]) is False
    assert is_correct(f' "{value}" ', [value.upper()]) is (value not in "?...")
    assert is_correct(value, [value]) is True


@pytest.mark.parametrize("answer", ["**red**", "- red", "'red'.", "(red)", "> red !!", "$ red %", "red +", "# red"])
def test_other_punctuation_around_an_answer_does_not_count(answer):
    assert is_correct(answer, ["Red"]) is True


def test_punctuation_within_stays():
    assert normalise("It's 3.5 m.") == "it's 3.5 m"


def test_metrics_are_of_all_prompts_or_of_a_type():
    grader = parse_metrics(["object_f1", "a=b=exact", "count=object_f1", "count=exact"])
    assert [grader.metric(kind) for kind in ("caption", None, "a=b", "count")] == ["object_f1"] * 2 + ["exact"] * 2
    assert parse_metrics([]).metric("caption") == "exact"


def test_scores_are_of_the_best_reference_and_none_without_one():
    grader = parse_metrics(["caption=object_f1"])
    assert grader.score("a red circle", ["a blue star", "a red circle, a red star"], "caption") == pytest.approx(2 / 3)
    assert grader.score("a red circle", ["a red circle, a red star"], "color") == 0
    assert grader.score("A red circle.", ["a red circle"], None) == 1
    assert grader.score("red", [], "caption") is grader.score("red", None, "color") is None


@pytest.mark.parametrize(
    "text", ["", "f1", "caption=", "=exact", "caption=object_F1", "caption=exact=", "caption:exact"]
)
def test_a_metric_that_there_is_not_is_refused(text):
    with pytest.raises(ValueError, match=r".*: expected NAME or TYPE=NAME, with one of exact, object_f1 as NAME"):
        parse_metrics([text])
