"""The tables that are printed without SQL: every answer counts once, under the budget that was asked for."""

import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.report.query import ask, connect
from pipeline.report.summary import accuracy, summarise


def test_without_answers_no_accuracy(small_pruned, tmp_path):
    db = connect(small_pruned(tmp_path / "out"))
    tables = summarise(db).tables
    assert list(tables) == ["images", "selections per image", "prompts", "errors", "seconds per stage"]
    assert tables["images"].to_pylist()[0]["kept"] == 12
    assert len(accuracy(db)) == 0


def test_budgets_that_show_the_same_tokens_are_told_apart(small_pruned, small_answers, tmp_path):
    """Two tokens are stored: at 2, at half of 4 and at all of them an image looks the same."""
    pruned = small_pruned(tmp_path / "pruned")
    answers = [small_answers(tmp_path / name, pruned, tokens=name) for name in ("2", "0.5", "all")]
    db = connect(pruned, answers)
    assert ask(db, "select budget, count(*) as n from answers group by budget order by budget").to_pylist() == [
        {"budget": "0.5", "n": 2},
        {"budget": "2", "n": 2},
        {"budget": "all", "n": 2},
    ]
    right = {"0.5 of tokens": 100.0, "2 tokens": 100.0, "all tokens": 100.0}
    assert accuracy(db).to_pylist() == [
        {"type": "t", "metric": "exact", "graded": 2, **right},
        {"type": "all", "metric": "exact", "graded": 2, **right},
    ]
    assert list(summarise(db).tables)[-1] == "accuracy, %"


@pytest.mark.parametrize("other", ["2", "02"])
def test_one_budget_twice_is_refused(small_pruned, small_answers, tmp_path, other):
    pruned = small_pruned(tmp_path / "pruned")
    answers = [small_answers(tmp_path / name, pruned, tokens=tokens) for name, tokens in (("a", "2"), ("b", other))]
    with pytest.raises(UserError, match=rf"both hold answers at --tokens {other}, which"):
        connect(pruned, answers)


def test_a_type_called_all_is_not_the_total(small_pruned, small_answers, tmp_path):
    pruned = small_pruned(tmp_path / "pruned")
    answers = small_answers(tmp_path / "answers", pruned, types=("all", None))
    assert accuracy(connect(pruned, [answers])).to_pylist() == [
        {"type": "-", "metric": "exact", "graded": 1, "all tokens": 100.0},
        {"type": "all", "metric": "exact", "graded": 1, "all tokens": 100.0},
        {"type": "all", "metric": "exact", "graded": 2, "all tokens": 100.0},
    ]


def test_each_commit_record_is_read_once(small_pruned, small_answers, tmp_path, monkeypatch):
    pruned = small_pruned(tmp_path / "pruned")
    answers = small_answers(tmp_path / "answers", pruned)
    read: list[tuple[str, int]] = []
    own = Artifact.read_commit

    def noted(self, shard):
        read.append((str(self.root), shard))
        return own(self, shard)

    monkeypatch.setattr(Artifact, "read_commit", noted)
    summarise(connect(pruned, [answers]))
    assert sorted(read) == sorted((str(root), shard) for root in (pruned, answers) for shard in (0, 1))
