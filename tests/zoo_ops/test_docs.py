"""The code in docs/selectors.md runs, in its order, and names what there is."""

import re
from pathlib import Path

import zoo_ops

PAGE = (Path(__file__).parents[2] / "docs" / "selectors.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


def test_the_page_names_every_selector_and_estimator():
    rows = set(re.findall(r"^\| `(\w+)`", PAGE, flags=re.MULTILINE)) - {"selector", "estimator"}
    assert rows == {*zoo_ops.SELECTORS, *zoo_ops.ESTIMATORS}
