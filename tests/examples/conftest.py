"""Makes the scripts importable and finds the bundled files."""

import sys
from pathlib import Path

import pytest

EXAMPLES_DIR = Path(__file__).resolve().parents[2] / "examples"
for folder in ("tiny_llava_training", "fine_tuning"):
    sys.path.insert(0, str(EXAMPLES_DIR / folder))
sys.path.append(str(EXAMPLES_DIR / "lmms_eval"))  # after the first, whose export.py is another


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The bundled checkpoint."""
    return EXAMPLES_DIR / "tiny-llava"


@pytest.fixture(scope="session")
def corpus_dir() -> Path:
    """The bundled corpus."""
    return EXAMPLES_DIR / "scenes"
