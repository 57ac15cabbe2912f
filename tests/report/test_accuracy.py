"""Accuracy of a report: values counted by hand, intervals that hold what they should, controls that are controls."""

from pathlib import Path

import duckdb
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.report import accuracy as room
from pipeline.report.accuracy import MAX_RUNS, accuracy_of, draws, ratio, register_controls
from pipeline.report.query import connect
from tests.report.reports import page_on, report_on, write_answers


def by_type(scores: dict[str, float]):
    return lambda prompt: (prompt["prompt_id"], scores[prompt["prompt_id"][-1]])


@pytest.fixture
def pruned(small_pruned, tmp_path: Path) -> Path:
    return small_pruned(tmp_path / "pruned")


def test_values_are_those_counted_by_hand(pruned, tmp_path):
    """Four prompts: two a shard, of which the second is about the third image of shard 0."""
    answers = [
        write_answers(tmp_path / "all", pruned, "all", by_type({"0": 1.0, "1": 1.0})),
        write_answers(tmp_path / "one", pruned, "1", by_type({"0": 1.0, "1": 0.25}), seen=1),
    ]
    found = report_on(pruned, answers).accuracy
    assert found is not None
    assert [(run.budget, run.tokens, run.is_control) for run in found.runs] == [("all", 2.0, False), ("1", 1.0, False)]
    assert found.images == 3
    full, one = found.of(0), found.of(1)
    assert (full.value, full.low, full.high, full.loss, full.prompts) == (100.0, 100.0, 100.0, None, 4)
    assert one.value == pytest.approx(62.5)
    assert one.loss == pytest.approx(37.5)
    assert one.loss_low <= one.loss <= one.loss_high
    assert found.of(1, "t") == room.Point(**{**vars(one), "type": "t"}), "there is one type"


def test_prompts_that_only_one_run_scored_are_not_compared(pruned, tmp_path):
    """At one token the prompts about the third image are refused: what is left loses nothing."""
    answers = [
        write_answers(tmp_path / "all", pruned, "all", by_type({"0": 1.0, "1": 0.0})),
        write_answers(
            tmp_path / "one", pruned, "1",
            lambda prompt: (None, None) if prompt["prompt_id"].endswith("1") else ("x", 1.0), seen=1,
        ),
    ]  # fmt: skip
    found = report_on(pruned, answers).accuracy
    assert (found.of(0).value, found.of(1).value, found.of(1).prompts) == (50.0, 100.0, 2)
    assert found.of(1).loss == 0.0


TWICE = "0002" * 16  # the image that two of the four prompts are about


def test_tokens_are_those_of_an_image_on_average_not_of_a_prompt(pruned, tmp_path):
    """Three images with 2, 1 and 1 tokens: the first is asked about twice, and counts once."""
    some = {TWICE: 2, "0000" * 16: 1, "0100" * 16: 1}
    answers = write_answers(tmp_path / "gain", pruned, "gain:0.3", by_type({"0": 1.0, "1": 1.0}), seen=some)
    (run,) = report_on(pruned, [answers]).accuracy.runs
    assert run.tokens == pytest.approx(4 / 3)


def test_one_image_has_no_interval_and_the_others_do_not_count(pruned, tmp_path):
    """Only the prompts about one image are scored."""

    def given(score: float):
        return lambda prompt: ("x", score if prompt["image_id"] == TWICE else None)

    answers = [
        write_answers(tmp_path / "all", pruned, "all", given(1.0)),
        write_answers(tmp_path / "one", pruned, "1", given(0.0), seen=1),
    ]
    found = report_on(pruned, answers).accuracy
    assert found.images == 1
    assert [(point.value, point.low, point.high) for point in (found.of(0), found.of(1))] == [
        (100.0, None, None), (0.0, None, None)
    ]  # fmt: skip
    assert (found.of(1).loss, found.of(1).loss_low, found.of(1).loss_high) == (100.0, None, None)
    page = page_on(pruned, answers)
    assert "[of one image]" in page
    assert "[100.0, 100.0]" not in page


@pytest.mark.parametrize("refusing", ["all", "some"])
def test_answers_without_a_prompt_in_common_cost_nothing_that_is_known(pruned, tmp_path, refusing):
    """With all tokens no prompt fits, or others do than with fewer."""
    full = {"all": (None, None), "some": ("x", 1.0)}[refusing]
    answers = [
        write_answers(
            tmp_path / "all", pruned, "all", lambda prompt: (None, None) if prompt["prompt_id"][-1] == "1" else full
        ),
        write_answers(
            tmp_path / "one", pruned, "1",
            lambda prompt: ("x", 1.0) if prompt["prompt_id"][-1] == "1" else (None, None), seen=1,
        ),
    ]  # fmt: skip
    assert report_on(pruned, answers).accuracy.of(1).loss is None
    page = page_on(pruned, answers)
    assert "What fewer tokens cost can't be told: no prompt has a score both at" in page
    assert "A second budget would tell what fewer tokens cost" not in page


def test_without_scores_the_answers_at_the_most_tokens_are_compared_with(pruned, tmp_path):
    answers = [
        write_answers(tmp_path / "all", pruned, "all", lambda prompt: (prompt["prompt_id"], None)),
        write_answers(
            tmp_path / "one", pruned, "1",
            lambda prompt: (prompt["prompt_id"] if prompt["prompt_id"] < "p1" else "another", None), seen=1,
        ),
    ]  # fmt: skip
    found = report_on(pruned, answers).accuracy
    assert found.measure == "same answer as at the most tokens"
    assert (found.of(0).value, found.of(1).value) == (100.0, 50.0)


def test_controls_are_answers_over_the_same_corpus_by_another_selector(pruned, small_pruned, tmp_path):
    own = write_answers(tmp_path / "own", pruned, "all", by_type({"0": 1.0, "1": 1.0}), selector="zoo")
    other = small_pruned(tmp_path / "other", value=9.0)
    controls = [
        write_answers(tmp_path / name, other, "1", by_type({"0": score, "1": score}), seen=1, selector="random")
        for name, score in (("first", 0.0), ("second", 0.5))
    ]
    report = report_on(pruned, [own], control=tuple(map(str, controls)))
    found = report.accuracy
    assert [(run.selector, run.budget, run.is_control) for run in found.runs[1:]] == [("random", "1", True)]
    assert found.of(1).value == pytest.approx(25.0), "the mean of two seeds"
    assert found.has_controls
    assert [run.title for run in report.runs] == [
        "Pruning", "Answers at all", "Control random at 1", "Control random at 1",
    ]  # fmt: skip
    assert "Controls choose tokens without looking" in page_on(pruned, [own], control=tuple(map(str, controls)))


def test_what_is_no_control_is_refused(pruned, tmp_path):
    own = write_answers(tmp_path / "own", pruned, "all", by_type({"0": 1.0, "1": 1.0}), selector="zoo")
    db = connect(pruned)
    with pytest.raises(UserError, match="its tokens were chosen by zoo too, which is no control"):
        register_controls(db, [str(own)], [str(own)], "zoo")
    with pytest.raises(UserError, match="nothing to compare it with; give --answers too"):
        register_controls(db, [], [str(own)], "zoo")
    with pytest.raises(UserError, match="is the output of another job"):
        register_controls(db, [str(own)], [str(pruned)], "zoo")


def test_more_sets_of_answers_than_are_shown_are_refused(pruned, tmp_path):
    answers = write_answers(tmp_path / "all", pruned, "all", by_type({"0": 1.0, "1": 1.0}))
    db = connect(pruned, [answers])
    with pytest.raises(UserError, match=f"a report shows up to {MAX_RUNS}"):
        accuracy_of(db, "zoo", [("random", str(number)) for number in range(MAX_RUNS)])


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    """Images with 1 to 5 prompts that share their luck, 300 times over."""
    random, held, truth = np.random.default_rng(0), 0, 0.7
    drawn = draws(120, 0)
    for _ in range(300):
        asked = random.integers(1, 6, 120).astype(float)
        right = random.binomial(asked.astype(int), random.beta(3.5, 1.5, 120))  # mean 0.7, one chance an image
        _, low, high = ratio(right[None].astype(float), asked[None], drawn)
        held += bool(low[0] <= truth <= high[0])
    assert 0.90 <= held / 300 <= 0.985


def test_many_images_are_resampled_in_groups(monkeypatch):
    """The interval of groups is that of images but for chance; the value is the same."""
    db = duckdb.connect()
    db.execute(
        """create table answers as select sha256(range::varchar) as image_id, range as prompt_id, 't' as type,
           b as budget, 'x' as answer, (hash(range) % 10 < 8)::int::double as score, n as tokens, 1.0 as seconds,
           'exact' as metric from range(3000), (values ('all', 9), ('1', 1)) v(b, n)"""
    )
    single = accuracy_of(db, "zoo", [])
    monkeypatch.setattr(room, "MAX_CLUSTERS", 2_999)
    monkeypatch.setattr(room, "_DIGITS", 2)
    grouped = accuracy_of(db, "zoo", [])
    assert grouped.of(0).value == pytest.approx(single.of(0).value)
    widths = [one.of(0).high - one.of(0).low for one in (grouped, single)]
    assert 0.8 < widths[0] / widths[1] < 1.25
    assert widths[0] != widths[1], "other groups were drawn"
