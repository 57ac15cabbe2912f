"""Captions are graded by the objects they name, worked out by hand here."""

import pytest

from pipeline.grading.metrics.object_f1 import ObjectScore, object_score

REFERENCE = "a red circle, a blue seven, a red circle, an orange star."


@pytest.mark.parametrize(
    "answer",
    [
        REFERENCE,
        "an orange star, a blue seven, a red circle, a red circle.",
        "A RED circle,  the blue seven ; red circle and orange star",
        "red circle a blue seven a red circle an orange star",
        ", and . a red circle, , blue\nseven, and a red circle. orange star. and a",
    ],
)
def test_order_case_articles_and_separators_do_not_matter(answer):
    assert object_score(answer, REFERENCE) == ObjectScore(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "found", "named"),
    [
        ("a red circle, a blue seven.", 2, 2),
        ("a red circle, a red circle, a red circle.", 2, 3),  # there twice, so the third is wrong
        ("a blue circle, a red seven, an orange star.", 1, 3),  # colours and kinds of different objects
        ("a red circle, a", 1, 1),  # cut off behind an article
        ("a red circle, a blue", 1, 2),  # cut off within an object, which was named all the same
        ("red red circle, circle red, star", 0, 3),
        ("yes", 0, 1),
    ],
)
def test_shares_by_hand(answer, found, named):
    score = object_score(answer, REFERENCE)
    assert (score.precision, score.recall) == (found / named, found / 4)
    harmonic = 2 * score.precision * score.recall / (score.precision + score.recall) if found else 0.0
    assert score.f1 == pytest.approx(harmonic)


@pytest.mark.parametrize("answer", ["", "   ", "., ,", "a the and", "\n"])
def test_an_answer_without_an_object_scores_nothing(answer):
    assert object_score(answer, REFERENCE) == ObjectScore(0.0, 0.0, 0.0)


def test_of_nothing_there_nothing_is_the_right_answer():
    assert object_score(" .", "").f1 == 1.0
    assert object_score("a red circle", ".").f1 == 0.0
