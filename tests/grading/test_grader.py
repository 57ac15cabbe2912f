"""Exact match after normalisation, and which metric scores what."""

import pytest

from pipeline.errors import UserError
from pipeline.grading.grader import parse_metrics
from pipeline.grading.metrics.exact import is_correct, normalise


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


@pytest.mark.parametrize("value", ["-5", "+5", "-.5", ".5", "<5", "$5", "#3", "5%", "c++", "c#", "?", "..."])
def test_punctuation_that_belongs_to_a_value_stays(value):
    bare = value.strip("-+$#<%c?.")
    assert is_correct(bare, [value]) is False
    assert is_correct(f' "{value}" ', [value.upper()]) is (value not in "?...")
    assert is_correct(value, [value]) is True


@pytest.mark.parametrize(
    "answer",
    [
        "**red**",
        "- red",
        "'red'.",
        "(red)",
        "> red !!",
        "$ red %",
        "red +",
        "# red",
        "“red”",
        "«red»",
        "red。",
        "¿red?",
    ],
)
def test_other_punctuation_around_an_answer_does_not_count(answer):
    assert is_correct(answer, ["Red"]) is True


def test_punctuation_within_stays():
    assert normalise("It's 3.5 m.") == "it's 3.5 m"


def test_metrics_are_of_all_prompts_or_of_a_type():
    grader = parse_metrics(["object_f1", "a=b=exact", "count=object_f1", "count=exact"])
    assert [grader.metric(kind).name for kind in ("caption", None, "a=b", "count")] == ["object_f1"] * 2 + ["exact"] * 2
    assert parse_metrics([]).metric("caption").name == "exact"


def test_scores_are_of_the_best_reference_and_none_without_one():
    grader = parse_metrics(["caption=object_f1"])
    assert grader.score("a red circle", ["a blue star", "a red circle, a red star"], "caption") == pytest.approx(2 / 3)
    assert grader.score("a red circle", ["a red circle, a red star"], "color") == 0
    assert grader.score("A red circle.", ["a red circle"], None) == 1
    assert grader.score("red", [], "caption") is grader.score("red", None, "color") is None


@pytest.mark.parametrize("text", ["", "caption=", "=exact", "caption=exact="])
def test_a_metric_without_a_name_is_refused(text):
    with pytest.raises(ValueError, match=r".*: expected NAME or TYPE=NAME, with one of exact, vqa, .* as NAME"):
        parse_metrics([text])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("f1", "there are exact, vqa, "),
        ("caption=object_F1", r"did you mean object_f1\?"),
        ("caption:exact", "there are|did you mean exact"),
        ("ROUGE-L", r"did you mean rouge_l\?"),
        ("cider", r"did you mean cider_d\?"),
    ],
)
def test_a_metric_that_there_is_not_is_refused_with_the_nearest_name(text, meant):
    with pytest.raises(ValueError, match=f"{text}: there is no metric .*; ({meant})"):
        parse_metrics([text])


def test_too_few_references_give_no_score():
    grader = parse_metrics(["vqa"])
    assert grader.score("two", ["two"] * 3, None) is None
    assert grader.score("two", ["two"] * 4, None) == 1


def test_metrics_over_the_corpus_are_named_as_they_were_given():
    assert parse_metrics(["cider_d", "caption=cider_d", "color=exact"]).over_corpus == ["cider_d", "caption=cider_d"]
    assert parse_metrics(["rouge_l"]).over_corpus == []


def test_a_default_metric_needs_prompts_of_the_types_it_is_for():
    grader = parse_metrics(["vqa", "color=exact"])
    grader.check({"color": 1, "open": 10, None: 0}, "out", lambda _: [])
    with pytest.raises(UserError, match="no other prompt in out has more than 2"):
        grader.check({"color": 10, "open": 2}, "out", lambda _: [])
    parse_metrics([]).check({"color": 0}, "out", lambda _: [])


def test_pope_needs_a_prompt_of_yes_or_no():
    """That prompts have references is not enough, and one that it can score is."""
    said = {"color": [["red"], ["blue", "yes"]], "exist": [["two"], ["No."]], None: [["red"]]}
    most = {"color": 2, "exist": 1, None: 1}
    parse_metrics(["pope"]).check(most, "out", said.__getitem__)
    parse_metrics(["exist=pope"]).check(most, "out", said.__getitem__)
    with pytest.raises(UserError, match=r"^--metric color=pope: pope is about yes or no, but no prompt of type color"):
        parse_metrics(["color=pope"]).check(most, "out", said.__getitem__)
    with pytest.raises(UserError, match=r"^--metric pope: pope is about yes or no, but no other prompt in out has a"):
        parse_metrics(["pope", "exist=exact"]).check(most, "out", said.__getitem__)
