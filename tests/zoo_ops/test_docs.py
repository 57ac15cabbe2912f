"""The code in docs/selectors.md runs, in its order, and names what there is."""

import json
import re
from pathlib import Path

import zoo_ops

REPO = Path(__file__).parents[2]
PAGE = (REPO / "docs" / "selectors.md").read_text(encoding="utf-8")
SHOWN = ("zoo", "sensitivity")


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


def test_the_page_names_every_selector_and_estimator():
    rows = set(re.findall(r"^\| `(\w+)`", PAGE, flags=re.MULTILINE)) - {"selector", "estimator"}
    assert rows == {*zoo_ops.SELECTORS, *zoo_ops.ESTIMATORS}


def test_the_figures_of_the_low_rank_projector_are_those_of_the_committed_results():
    rows = json.loads((REPO / "benchmarks" / "results" / "low_rank.json").read_text())["rows"]
    for row in rows:
        kept = [" / ".join(f"{100 * share:.0f}" for share in row[f"{by}_kept_alike"].values()) for by in SHOWN]
        figures = [f"{row['value_ratio']:.2f}", f"{row['spearman_mean']:.3f}", *kept]
        line = f"| {row['projector']} | {row['estimate']} | {' | '.join(figures)} |"
        assert line in PAGE, f"docs/selectors.md lacks {line}"
