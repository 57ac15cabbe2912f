"""The example runs as its first line says."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_draws_the_kept_tokens(tmp_path, monkeypatch):
    if not (EXAMPLES / "tiny-llava").exists():
        pytest.skip("the bundled model is not there")
    monkeypatch.chdir(tmp_path)
    photo = EXAMPLES / "scenes" / "images" / "000001.jpg"
    monkeypatch.setattr(sys, "argv", ["keep_tokens.py", str(photo), str(EXAMPLES / "tiny-llava"), "5"])
    values = runpy.run_path(str(EXAMPLES / "keep_tokens.py"))
    assert values["ranking"].indices_BK.shape == (1, 5)
    assert Image.open("kept.png").size == (448, 448)
