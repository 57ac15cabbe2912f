"""The benchmark of corpus-mean budgets as a command, small."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import mean_budgets


def test_both_ways_spend_as_many_tokens(tmp_path, monkeypatch, capsys):
    command = ["benchmarks/mean_budgets.py", "--limit", "4", "--selector", "zoo", "--json", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", command)
    mean_budgets.main()
    result = json.loads((tmp_path / "r.json").read_text())
    whole = [row for row in result["rows"] if row["split"] == "both" and row["kind"] == "one-word"]
    assert [row["tokens"] for row in whole] == [32, 16]
    for row in whole:
        assert row["mean_tokens"] == pytest.approx(row["tokens"], abs=0.5)
        assert row["mean_tokens"] <= row["tokens"]
        assert row["fewest"] < row["tokens"] < row["most"]
        assert row["points"] == pytest.approx(row["mean"] - row["equal"], abs=0.02)
        assert row["low"] <= row["points"] <= row["high"]
    assert "one-word: one threshold for all" in capsys.readouterr().out


def test_the_text_has_the_committed_figures():
    repo = Path(__file__).resolve().parents[2]
    result = json.loads((repo / "benchmarks" / "results" / "mean_budgets.json").read_text())
    text = (repo / "docs" / "choosing.md").read_text()
    lines = mean_budgets.lines_of(result["rows"])
    assert len(lines) == 2 * 4 * len(mean_budgets.SELECTORS)
    for line in lines:
        assert line in text
    assert f"{result['images']} images" in text
