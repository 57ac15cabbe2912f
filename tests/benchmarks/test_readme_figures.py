"""Texts made of results: what they say is what the rows say."""

import json

import pytest

from benchmarks import readme_figures
from benchmarks.comparison import POOLED, Comparison, columnar, mean_of
from benchmarks.readme_figures import accuracy_lines, selector_lines
from tests.benchmarks.made_scores import RUNS, TOKENS, prompts, scores


@pytest.fixture(scope="module")
def result() -> dict:
    """Of two models, as read from a file."""
    models = {"first": scores(0), "second": scores(1)}
    rows, beaten = [], []
    for name, of_model in ({POOLED: mean_of(list(models.values()))} | models).items():
        comparison = Comparison(name, prompts(), RUNS, TOKENS, 256)
        rows += comparison.rows(of_model)
        beaten += comparison.beaten(of_model)
    costs = {"cpu_ms_per_answer": {"256": 10.0, "64": 5.0, "32": 3.0}}
    made = {"command": "python x.py", "models": {name: {} for name in models}, "images": 60, "equality": "12 are equal"}
    return json.loads(json.dumps({**made, "answers": costs, "beaten": beaten, **columnar(rows)}))


def test_readme_has_a_table_a_split_with_costs(result):
    lines = accuracy_lines(result)
    assert "mean of 2 models" in lines[0]
    assert [line for line in lines if "questions |" in line] == [
        "| plain, 120 questions | `zoo` | `random` | time to answer |",
        "| cluttered, 60 questions | `zoo` | `random` | time to answer |",
    ]
    (plain, cluttered) = [line for line in lines if line.startswith("| 64 (0.25) |")]
    both = (scores(0).scores_RBQ + scores(1).scores_RBQ)[0, 0] / 2
    for line, split in ((plain, "plain"), (cluttered, "cluttered")):
        numbers = [n for n, prompt in enumerate(prompts()) if prompt.split == split and prompt.kind != "caption"]
        assert line.startswith(f"| 64 (0.25) | {100 * both[numbers].mean():.1f} [")
        assert line.endswith(" | 0.50 |")
    assert "mean of 2 seeds" in lines[-1]


def test_readme_names_the_type_that_loses_most_of_each_split(result):
    text = accuracy_lines(result)[-1]
    both = 100 * (scores(0).scores_RBQ + scores(1).scores_RBQ)[0, 0] / 2
    for split, kinds in (("plain", ("color", "count")), ("cluttered", ("color", "digit"))):
        lost = {
            kind: 100 - both[[n for n, p in enumerate(prompts()) if (p.split, p.kind) == (split, kind)]].mean()
            for kind in kinds
        }
        worst = max(lost, key=lost.get)
        assert f"loses most, {split}: 64: {lost[worst]:.1f} ({worst})" in text


def test_docs_show_differences_and_who_beats_whom(result):
    text = "\n".join(selector_lines(result))
    assert "12 are equal" in text
    assert "| pooling | +0.0 [+0.0, +0.0] = |  |" in text  # there is none at 32
    assert "Plain, 60 caption questions (object F1)" in text
    assert "Cluttered, 60 caption" not in text
    assert "* good, plain: nothing at any budget" in text
    assert "* bad, plain: 64: zoo, good, random, pooling; 32: zoo, good, random" in text
    assert "21 intervals are looked at here" in text  # three tables, 4 methods beside `zoo` at 64 and 3 at 32
    assert "the same verdict on one-word questions in 14 of 14 cells, and opposite ones (better, worse) in 0" in text


def test_one_model_does_not_agree_with_itself(result):
    alone = {**result, "models": {"first": {}}}
    assert "Apart, the models" not in "\n".join(selector_lines(alone))
    assert "mean of" not in accuracy_lines(alone)[0]


def test_a_block_is_replaced_between_its_marks_and_nothing_else():
    other = readme_figures.marked("other", "old")
    text = f"before\n{readme_figures.marked('one', 'old')}\nbetween\n{other}\nafter\n"
    assert readme_figures.with_block(text, "one", "new") == f"before\nnew\nbetween\n{other}\nafter\n"
