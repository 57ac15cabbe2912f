"""README tells the truth: its figures are those of the committed results, its Python runs, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()


def test_figures_are_those_of_the_committed_results():
    command = [sys.executable, "benchmarks/readme_figures.py", "--check"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_operations_example_runs():
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "from zoo_ops" in c)
    projector = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 40)).requires_grad_(False)
    names = {"projector": projector, "features_BND": torch.randn(2, 100, 32)}
    exec(compile(code, "README.md", "exec"), names)
    assert tuple(names["kept"].features_BKO.shape) == (2, 32, 40)


def test_the_reading_example_runs_on_a_real_artifact(pruned_64, monkeypatch, tmp_path):
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "webdataset" in c)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photos").symlink_to(pruned_64)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["features"].shape[0] == len(names["ranking"]) == 64


@pytest.mark.parametrize("target", re.findall(r"make ([a-z-]+)", README))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (REPO / "Makefile").read_text(), re.M)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`?((?:docs|benchmarks|examples|jobs|pipeline)/[\w./-]+)", README)))
)
def test_named_files_exist(path):
    assert (REPO / path.rstrip("./")).exists(), path
