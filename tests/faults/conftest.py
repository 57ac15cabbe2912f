"""Corpora and an undisturbed run to compare with; options of the full fault suite (`make faults`)."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
for folder in (REPO, REPO / "tests" / "faults"):
    sys.path.insert(0, str(folder))

from fault_tools import RUN_SETTINGS, Facts, facts_of  # noqa: E402

from benchmarks.synthetic import make_corpus  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="SIGKILLs of each victim in the full fault suite")
    parser.addoption("--kill-report", default=None, help="JSON file that lists every kill of the full fault suite")


@pytest.fixture(scope="session")
def made_corpus(made_once: Callable[..., Path]) -> str:
    """320 samples: 306 distinct good images, 8 damaged ones, 6 repeats; 640 prompts."""

    def make(folder: Path) -> str:
        return make_corpus(folder, RUN_SETTINGS["images"], samples_per_tar=100, with_faults=True)

    return make(made_once("made-corpus", make))


@pytest.fixture(scope="session")
def facts(made_corpus: str) -> Facts:
    return facts_of(made_corpus)


@pytest.fixture(scope="session")
def calm(prune: Callable[..., list[str]], made_corpus: str, made_once: Callable[..., Path]) -> Path:
    """The made corpus pruned in 40 shards with nobody disturbing it."""
    return made_once("calm", lambda output: prune(output, corpus=(made_corpus,), **RUN_SETTINGS["prune"]))
