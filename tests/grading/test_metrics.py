"""Every metric by hand, and against values that the reference code gives.

The latter were computed with pycocoevalcap (commit ad63453: its CIDEr-D, ROUGE-L and BLEU, on words that were told
apart before), sacrebleu (f615c72: BLEU of a sentence, `effective_order=True`) and lmms-eval (75571cf: its answer
processing for VQA, ANLS, ChartQA).
"""

import statistics
from collections import Counter

import pytest

from pipeline.grading.metrics import METRICS
from pipeline.grading.metrics.anls import edit_distance
from pipeline.grading.metrics.rouge_l import longest_common
from pipeline.grading.metrics.vqa import processed
from pipeline.grading.metrics.words import words

CAPTIONS = (
    ("a red dog runs on the grass", ["a brown dog runs on the grass", "the dog is running across a green field"]),
    ("two people ride a bus", ["two men sit on a bus", "people on a city bus", "a bus full of people"]),
    ("a cat", ["a black cat sleeps on a red chair"]),
    ("the man with the ball", ["the man throws the ball", "the man with the ball"]),
)


def score(metric: str, answer: str, *references: str) -> float | None:
    scorer = METRICS[metric].score
    assert scorer is not None
    return scorer(answer, references)


def test_every_metric_stands_under_its_name():
    assert all(metric.name == name for name, metric in METRICS.items())
    assert all((metric.score is None) == (metric.corpus is not None) for metric in METRICS.values())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Two dogs.", "2 dogs"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("a/b", "b"),
        ("red, blue", "red blue"),
        ("yes/no ", "yes no"),
        ("It's", "it's"),
        ("none", "0"),
        ("T-shirt", "t shirt"),
        ("what ?", "what"),
        ("u.s.", "us"),
        ("what?  (left)", "what left"),
        ("two,three", "2 3"),
    ],
)
def test_answers_are_processed_as_in_vqa(answer, expected):
    assert processed(answer) == expected
    assert score("vqa", answer, *[expected] * 4) == 1


@pytest.mark.parametrize(("answer", "expected"), [("two,three", "twothree"), ("dog's", "dog 's"), ("It's", "it 's")])
def test_textvqa_processes_otherwise(answer, expected):
    assert score("textvqa", answer, *[expected] * 4) == 1
    assert score("vqa", answer, *[expected] * 4) == 0


@pytest.mark.parametrize(
    ("agree", "expected"),
    [
        (0, 0),
        (1, 9 * (1 / 3) / 10),
        (2, (2 * (1 / 3) + 8 * (2 / 3)) / 10),
        (3, (3 * (2 / 3) + 7) / 10),
        (4, 1),
        (10, 1),
    ],
)
def test_vqa_leaves_each_person_out_in_turn(agree, expected):
    others = [f"other {n}" for n in range(10 - agree)]
    assert score("vqa", "Two", *["2"] * agree, *others) == pytest.approx(expected)


def test_vqa_needs_people_to_agree():
    metric = METRICS["vqa"]
    assert not metric.can_score(["2", "2", "2"])
    assert metric.can_score(["2"] * 4)


@pytest.mark.parametrize(
    ("answer", "expected"), [(" Red!", 1), ("re-d", 1), ("red ball", 0), ("dark  red", 0), ("", 0)]
)
def test_gqa_ignores_case_and_punctuation(answer, expected):
    assert score("gqa", answer, "blue", "red.") == expected


def test_pope_by_hand():
    answers = [
        ("Yes, there is.", "yes"),
        ("no", "yes"),
        (" yes", "no"),
        ("No.", "no"),
        ("maybe", "yes"),
        ("yes", "yes"),
    ]
    metric = METRICS["pope"]
    scores = [score("pope", answer, truth) for answer, truth in answers]
    assert scores == [1, 0, 0, 1, 0, 1]
    counts = [metric.counts(answer, [truth]) for answer, truth in answers]
    sums = [sum(column) for column in zip(*counts, strict=True)]
    assert sums == [3, 4, 2]  # said yes, yes is right, both
    measured = {name: measure(6, 3, sums) for name, measure in metric.measures.items()}
    assert measured == {
        "accuracy": 0.5,
        "f1": pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        "share of yes": 0.5,
    }
    assert score("pope", "yes", "two") is None, "that is no question of yes or no"
    assert metric.measures["f1"](1, 0, [0, 0, 0]) == 0


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        (" hello world", ["Hello  World"], 1),
        ("helo", ["hello"], 0.8),
        ("abcd", ["abxy"], 0.5),
        ("abc", ["abxyz"], 0),
        ("12", ["13", "112"], 2 / 3),
        ("", [""], 1),
        ("", ["a"], 0),
    ],
)
def test_anls(answer, references, expected):
    assert score("anls", answer, *references) == pytest.approx(expected)


@pytest.mark.parametrize(("one", "other", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("ab", "ba", 2)])
def test_edit_distances(one, other, distance):
    for most in range(len(one) + len(other) + 1):
        expected = distance if distance <= most else None
        assert edit_distance(one, other, most) == edit_distance(other, one, most) == expected


def test_edits_are_counted_no_further_than_they_matter():
    """Texts of 400 and 40,000 characters have nothing in common by their lengths alone: 16 million cells are spared."""
    met = Counter()

    class Noted(str):
        def __iter__(self):
            met["rows"] += 1
            return super().__iter__()

    assert edit_distance(Noted("a" * 400), "a" * 40_000, 20_000) is None
    assert edit_distance(Noted("a" * 20_000), "a" * 20_000, 10_000) == 0
    assert not met
    assert score("anls", "a" * 400, "a" * 40_000) == 0
    assert score("anls", "a" * 400, "a" * 800) == 0.5
    assert score("anls", "a" * 400, "a" * 801) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("104", "100", 1),
        ("105", "100", 1),
        ("106", "100", 0),
        ("5%", "0.05", 1),
        ("5", "5%", 0),
        (" Yes", "yes", 1),
        ("0", "0.0", 0),
        ("0", "0", 1),
        ("-95", "-100", 1),
        ("95", "-100", 0),
        ("1e3", "1000", 1),
        ("1,000", "1000", 0),
        ("1e999", "1e999", 0),
        ("nan", "3", 0),
    ],
)
def test_relaxed_accuracy(answer, reference, expected):
    assert score("relaxed", answer, reference) == expected
    assert score("relaxed", answer, "other", reference) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog's ball isn't RED.", "a dog 's ball is n't red"),
        ("t-shirt, 3,000.5 m -- \"well\"!", "t-shirt 3,000.5 m well"),
        ("It’s 50% (half)…", "it 's 50 % half"),
        ("they'll can't", "they 'll ca n't"),
        (" . , ", ""),
    ],
)  # fmt: skip
def test_words(text, expected):
    assert words(text) == expected.split()


def test_captions_by_the_reference_code():
    corpus = METRICS["cider_d"].corpus()
    for _, references in CAPTIONS:
        corpus.add(references)
    expected = {
        "cider_d": [3.475209595479529, 1.7238560817550896, 0.7061188916561598, 6.5625],
        "rouge_l": [0.8571428571428571, 0.6, 0.3609467455621302, 1.0],
        "bleu": [0.6434588841607617, 0.2540663740773074, 0.03520477365831487, 1.0],
    }
    for name, values in expected.items():
        scorer = METRICS[name].score or corpus.score
        assert [scorer(*caption) for caption in CAPTIONS] == pytest.approx(values), name
    sums = [sum(column) for column in zip(*(METRICS["bleu"].counts(*caption) for caption in CAPTIONS), strict=True)]
    of_corpus = METRICS["bleu"].measures["corpus"](len(CAPTIONS), 0, sums)
    assert of_corpus == pytest.approx(0.4510743782456457)
    assert of_corpus != pytest.approx(statistics.mean(expected["bleu"]), abs=0.01), "BLEU is no mean"


def test_bleu_by_hand():
    # words 4 and 5; one word of the answer is in no reference; 3, 2, 1 and no sequences of 1 to 4 words match
    assert METRICS["bleu"].counts("the dog runs away", ["see the dog runs fast"]) == (4, 5, 3, 2, 1, 0, 4, 3, 2, 1)
    brevity = 2.718281828459045 ** (1 - 5 / 4)
    smoothed = (3 / 4 * 2 / 3 * 1 / 2 * (1 / 2) / 1) ** (1 / 4)
    assert score("bleu", "the dog runs away", "see the dog runs fast") == pytest.approx(brevity * smoothed)
    assert METRICS["bleu"].measures["corpus"](1, 0, (4, 5, 3, 2, 1, 0, 4, 3, 2, 1)) == 0
    assert METRICS["bleu"].counts("dog dog", ["a dog"])[2] == 1, "a word matches as often as a reference has it"
    assert METRICS["bleu"].counts("a b c", ["a", "a b c d e"])[1] == 1, "of two lengths as near the shorter"
    assert score("bleu", "", "a dog") == score("bleu", "cat", "a dog") == score("bleu", "", "") == 0


def test_rouge_l_by_hand():
    assert longest_common(["a", "b", "c", "d", "e"], ["b", "x", "d", "a", "e"]) == 3
    precision, recall = 2 / 3, 2 / 4
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert score("rouge_l", "dog runs home", "the dog runs fast") == pytest.approx(expected)
    assert score("rouge_l", "dog", "cat") == score("rouge_l", "", "cat") == score("rouge_l", "cat", ".") == 0


def test_cider_d_by_hand():
    """Two prompts, each word in one of them: all weights are log 2 and drop out."""
    corpus = METRICS["cider_d"].corpus()
    corpus.add(["red dog"])
    corpus.add(["blue cat"])
    assert corpus.score("red dog", ["red dog"]) == pytest.approx(10 * (1 + 1 + 0 + 0) / 4)
    assert corpus.score("red cat", ["red dog"]) == pytest.approx(10 * (1 / 2) / 4)
    assert corpus.score("red dog", ["red dog", "blue cat"]) == pytest.approx(10 * (1 + 1) / 4 / 2)
    length = 2.718281828459045 ** (-1 / (2 * 36))
    assert corpus.score("red", ["red dog"]) == pytest.approx(10 * length * (1 / 2**0.5) / 4)
    corpus.add(["red dog", "red"])
    assert corpus.of["red",] == 2, "prompts are counted, not references"
    assert corpus.score("", ["red"]) == 0
