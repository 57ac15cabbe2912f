"""Every question is answered once more from the object list by an independent reader of its words."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
from cluttered import make_cluttered_scene
from questions import (
    CLEARLY_NOT_PX,
    CLEARLY_PX,
    ONE_WORD_TYPES,
    ORDER_PROMPTS,
    Question,
    all_questions,
    caption,
    object_words,
    sample_questions,
    with_article,
)
from scenes import COLORS, KINDS, NUMBERS, SHAPES, SceneObject, make_scene

from pipeline.grading.metrics.object_f1 import named_objects, object_score

_NUM_SCENES = 150


def _named(objects: Sequence[SceneObject], words: str) -> list[SceneObject]:
    """The objects that a phrase such as 'red circle', 'digit three', 'stars' or 'red objects' fits."""
    fitting = list(objects)
    for word in words.split():
        word = word.removesuffix("s") if word != "objects" else word
        if word in COLORS:
            fitting = [o for o in fitting if COLORS[o.color] == word]
        elif word in KINDS:
            fitting = [o for o in fitting if KINDS[o.kind] == word]
        elif word in NUMBERS:
            fitting = [o for o in fitting if o.digit == NUMBERS.index(word)]
        else:
            assert word == "objects", f"unknown word {word!r}"
    return fitting


def _relation_answer(objects: Sequence[SceneObject], side: str, words: str) -> str:
    (reference,) = _named(objects, words)
    sign_and_axis = {"left of": (-1, 0), "right of": (1, 0), "above": (-1, 1), "below": (1, 1)}
    sign, axis = sign_and_axis[side]
    ahead = {o: sign * (o.center[axis] - reference.center[axis]) for o in objects if o is not reference}
    (there,) = [o for o, distance in ahead.items() if distance > 0]
    assert ahead[there] >= CLEARLY_PX
    assert all(distance <= -CLEARLY_NOT_PX for o, distance in ahead.items() if o is not there)
    return KINDS[there.kind]


def _answer(objects: Sequence[SceneObject], prompt: str) -> str:
    """The one answer a careful reader gives; fails where there is not exactly one."""
    if match := re.fullmatch(r"what color is the (.+) \?", prompt):
        (item,) = _named(objects, match[1])
        return COLORS[item.color]
    if match := re.fullmatch(r"which shape is (\w+) \?", prompt):
        (item,) = [o for o in _named(objects, match[1]) if KINDS[o.kind] in SHAPES]
        return KINDS[item.kind]
    if prompt == "which digit is shown ?":
        (item,) = _named(objects, "digit")
        return NUMBERS[item.digit]
    if match := re.fullmatch(r"which digit is (\w+) \?", prompt):
        (item,) = _named(objects, f"{match[1]} digit")
        return NUMBERS[item.digit]
    if match := re.fullmatch(r"how many (.+) are there \?", prompt):
        return NUMBERS[len(_named(objects, match[1]))]
    if match := re.fullmatch(r"is there (?:an (?=o)|a (?!o))(.+) \?", prompt):
        return "yes" if _named(objects, match[1]) else "no"
    match = re.fullmatch(r"what is (left of|right of|above|below) the (.+) \?", prompt)
    assert match, f"unknown question {prompt!r}"
    return _relation_answer(objects, match[1], match[2])


@pytest.fixture(scope="module")
def asked() -> list[tuple[Sequence[SceneObject], Question]]:
    pairs = []
    for index in range(_NUM_SCENES):
        objects = make_scene("train", index).objects
        pairs += [(objects, question) for questions in all_questions(objects).values() for question in questions]
    return pairs


@pytest.mark.parametrize("kind", ONE_WORD_TYPES)
def test_questions_have_one_answer_and_it_is_right(kind: str, asked: list) -> None:
    of_kind = [(objects, question) for objects, question in asked if question.type == kind]
    assert len(of_kind) > _NUM_SCENES
    for objects, question in of_kind:
        assert question.answer == _answer(objects, question.prompt), question
        assert " " not in question.answer


def test_captions_name_every_object_by_colour_and_kind(asked: list) -> None:
    for objects, question in asked:
        if question.type == "caption":
            phrases = [phrase.split() for phrase in question.answer.removesuffix(".").split(", ")]
            assert len(phrases) == len(objects)
            ordered = sorted(objects, key=lambda o: (o.color, o.kind, o.digit))
            for (article, color, name), item in zip(phrases, ordered, strict=True):
                assert article == ("an" if color == "orange" else "a")
                assert color == COLORS[item.color]
                assert name == (NUMBERS[item.digit] if item.digit >= 0 else KINDS[item.kind])


def test_ordered_captions_go_from_left_to_right_and_from_above_to_below(asked: list) -> None:
    for objects, question in asked:
        if question.type == "order":
            axis = ("left to right" not in question.prompt) * 1
            assert question.prompt in ORDER_PROMPTS
            phrases = question.answer.removesuffix(".").split(", ")
            assert phrases == [with_article(object_words(o)) for o in sorted(objects, key=lambda o: o.center[axis])]


def test_every_object_of_a_caption_is_read_when_it_is_graded(asked: list) -> None:
    for objects, question in asked:
        if question.type == "caption":
            assert named_objects(question.answer).total() == len(objects)
            score = object_score(caption(objects[1:]), question.answer)
            assert (score.precision, score.recall) == (1.0, (len(objects) - 1) / len(objects))


def test_marks_and_numbers_have_one_answer_and_it_is_right() -> None:
    marks, numbers = 0, 0
    for index in range(_NUM_SCENES):
        scene = make_cluttered_scene("train", index)
        available = all_questions(scene.objects, scene.signs)
        for question in available["mark"]:
            (host,) = _named(scene.objects, re.fullmatch(r"what color is the mark on the (.+) \?", question.prompt)[1])
            assert question.answer == COLORS[host.mark] != COLORS[host.color]
            marks += 1
        for question in available["number"]:
            words = re.fullmatch(r"what number is on the (?:(\w+) )?sign \?", question.prompt)[1]
            (sign,) = [s for s in scene.signs if words is None or COLORS[s.color] == words]
            assert question.answer.split() == [NUMBERS[digit] for digit in sign.digits]
            numbers += 1
        for kind in ONE_WORD_TYPES:
            for question in available[kind]:
                assert question.answer == _answer(scene.objects, question.prompt), question
    assert marks > _NUM_SCENES
    assert numbers > _NUM_SCENES


def test_sampling_respects_limits_repeats_itself_and_balances_yes_and_no() -> None:
    answers = []
    for index in range(_NUM_SCENES):
        objects = make_scene("train", index).objects
        limits = {"count": 3, "exist": 2, "caption": 1}
        picked = sample_questions(objects, np.random.default_rng(index), limits=limits)
        assert picked == sample_questions(objects, np.random.default_rng(index), limits=limits)
        assert [q.type for q in picked] == ["count"] * 3 + ["exist"] * 2 + ["caption"]
        assert len({q.prompt for q in picked}) == len(picked)
        answers += [q.answer for q in picked if q.type == "exist"]
    assert 0.45 < answers.count("yes") / len(answers) < 0.55
