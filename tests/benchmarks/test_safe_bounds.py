"""The committed simulation of bounds is what the code gives now, and what the text says."""

import json
from pathlib import Path

import pytest

from benchmarks.safe_bounds import CASES, bound, wrongly_safe

REPO = Path(__file__).resolve().parents[2]
RESULT = json.loads((REPO / "benchmarks" / "results" / "safe_bounds.json").read_text())


def test_the_bound_is_as_committed():
    shares = [round(100 * wrongly_safe(case, bound), 1) for case in CASES]
    assert shares == pytest.approx([row["bound, %"] for row in RESULT["rows"]], abs=0.3)


def test_the_text_has_the_committed_figures():
    text = (REPO / "docs" / "choosing.md").read_text()
    for row in RESULT["rows"]:
        figures = " | ".join(f"{row[f'{name}, %']} %" for name in ("percentile", "studentised", "bound"))
        assert f"| {row['images']} images. {row['prompts']} | {row['tolerance, points']:g} | {figures} |" in text
