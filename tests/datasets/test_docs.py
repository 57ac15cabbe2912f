"""The Python of docs/training.md runs."""

import re
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_the_python_of_the_docs_runs(pruned_64, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photos").symlink_to(pruned_64)
    (tmp_path / "examples").symlink_to(REPO / "examples")
    monkeypatch.chdir(tmp_path)
    text = (REPO / "docs" / "training.md").read_text().partition("## Ray Data")[0]
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(code, "training.md", "exec"), names)
    assert names["epoch"] == 2
    assert names["loss"].requires_grad
    assert torch.isfinite(names["loss"])
