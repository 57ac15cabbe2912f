"""Tables of scores whose differences are known."""

import numpy as np
import pytest

from benchmarks.comparison import POOLED, Comparison, Row, Scores, columnar, mean_of, rows_of
from tests.benchmarks.made_scores import RUNS, TOKENS, prompts, scores


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison(POOLED, prompts(), RUNS, TOKENS, 256)


@pytest.fixture(scope="module")
def rows(comparison) -> list[Row]:
    return list(comparison.rows(scores()))


def cell(rows: list[Row], split: str, kind: str, selector: str, tokens: int = 64) -> Row:
    (found,) = [r for r in rows if (r.split, r.kind, r.selector, r.tokens) == (split, kind, selector, tokens)]
    return found


def test_groups_are_splits_and_kinds_apart_and_together(rows):
    sizes = {(row.split, row.kind): row.questions for row in rows}
    assert sizes == {
        ("plain", "one-word"): 120, ("plain", "color"): 60, ("plain", "count"): 60, ("plain", "caption"): 60,
        ("cluttered", "one-word"): 60, ("cluttered", "color"): 30, ("cluttered", "digit"): 30,
        ("both", "one-word"): 180, ("both", "color"): 90, ("both", "count"): 60, ("both", "digit"): 30,
        ("both", "caption"): 60,
    }  # fmt: skip


def test_one_split_alone_has_no_second_table_of_everything():
    asked = [prompt for prompt in prompts() if prompt.split == "plain"]
    numbers = [n for n, prompt in enumerate(prompts()) if prompt.split == "plain"]
    of_plain = Scores(scores().full_Q[numbers], scores().scores_RBQ[..., numbers])
    splits = {row.split for row in Comparison(POOLED, asked, RUNS, TOKENS, 256).rows(of_plain)}
    assert splits == {"plain"}


def test_levels_and_differences_are_those_of_the_scores(rows):
    numbers = [n for n, p in enumerate(prompts()) if p.split == "plain" and p.kind != "caption"]
    of = scores().scores_RBQ[:, 0, numbers].mean(1) * 100
    for place, name in ((0, "zoo"), (1, "good"), (2, "bad")):
        row = cell(rows, "plain", "one-word", name)
        assert row.percent == pytest.approx(of[place], abs=0.01)
        assert row.low < row.percent < row.high
    good, bad = cell(rows, "plain", "one-word", "good"), cell(rows, "plain", "one-word", "bad")
    assert good.points == pytest.approx(of[1] - of[0], abs=0.01)
    assert (good.verdict, good.holm, bad.verdict, bad.holm) == ("better", True, "worse", True)
    assert good.points_low < good.points < good.points_high


def test_seeds_are_averaged_question_by_question_and_shown(rows):
    numbers = [n for n, p in enumerate(prompts()) if p.kind == "caption"]
    of = scores().scores_RBQ[3:5, 0, numbers].mean(1) * 100
    row = cell(rows, "plain", "caption", "random")
    assert row.seeds == pytest.approx(list(of), abs=0.01)
    assert row.percent == pytest.approx(of.mean(), abs=0.01)
    assert row.verdict == "equal"
    assert cell(rows, "plain", "caption", "good").seeds is None


def test_what_a_method_has_not_is_left_out_and_the_reference_is_not_compared_with_itself(rows):
    assert {row.tokens for row in rows if row.selector == "pooling"} == {64}
    assert {row.verdict for row in rows if row.selector in ("zoo", "all tokens")} == {None}
    assert {row.tokens for row in rows if row.selector == "all tokens"} == {256}
    assert {row.percent for row in rows if row.selector == "all tokens"} == {100.0}


def test_pooled_models_share_their_images(comparison):
    """Two models that err oppositely on every image: each differs from `zoo` widely, their mean not at all."""
    first, second = scores(), scores()
    image_Q = np.array([int(prompt.image_id) for prompt in prompts()])
    first.scores_RBQ[1] = first.scores_RBQ[0] + np.where(image_Q % 4 < 2, 0.5, -0.5)
    second.scores_RBQ[1] = second.scores_RBQ[0] - np.where(image_Q % 4 < 2, 0.5, -0.5)
    apart = cell(list(comparison.rows(first)), "plain", "one-word", "good")
    pooled = cell(list(comparison.rows(mean_of([first, second]))), "plain", "one-word", "good")
    assert apart.points_high - apart.points_low > 10
    assert (pooled.points, pooled.points_low, pooled.points_high, pooled.verdict) == (0, 0, 0, "equal")


def test_who_beats_whom(comparison):
    found = {(b["split"], b["selector"]): b for b in comparison.beaten(scores()) if b["kind"] == "one-word"}
    assert found["plain", "good"]["at"] == found["plain", "good"]["after_holm"] == {}
    assert set(found["plain", "bad"]["after_holm"]["64"]) == {"zoo", "good", "random", "pooling"}
    assert set(found["plain", "bad"]["after_holm"]["32"]) == {"zoo", "good", "random"}
    assert "good" in found["plain", "zoo"]["after_holm"]["64"]
    assert found["plain", "zoo"]["rivals"] == 4 + 3
    assert {b["kind"] for b in comparison.beaten(scores())} == {"one-word", "caption"}


def test_rows_are_read_back_from_a_result(rows):
    assert rows_of(columnar(rows)) == rows
