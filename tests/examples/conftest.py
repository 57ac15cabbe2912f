"""Makes the scripts importable and finds the bundled files."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

EXAMPLES_DIR = Path(__file__).resolve().parents[2] / "examples"
for folder in ("tiny_llava_training", "fine_tuning"):
    sys.path.insert(0, str(EXAMPLES_DIR / folder))
sys.path.append(str(EXAMPLES_DIR / "lmms_eval"))  # after the first, whose export.py is another


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training makes torch compute in its own way, from then on."""
    threads, fills = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The bundled checkpoint."""
    return EXAMPLES_DIR / "tiny-llava"


@pytest.fixture(scope="session")
def corpus_dir() -> Path:
    """The bundled corpus."""
    return EXAMPLES_DIR / "scenes"
