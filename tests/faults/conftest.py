"""Corpora and an undisturbed run to compare with; options of the full fault suite (`make faults`)."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
for folder in (REPO, REPO / "tests" / "faults"):
    sys.path.insert(0, str(folder))

from fault_tools import (  # noqa: E402
    MANY_SETTINGS,
    MANY_SHARDS,
    NUM_SHARDS,
    RUN_SETTINGS,
    Facts,
    Undisturbed,
    facts_of,
)

from benchmarks.synthetic import make_corpus  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="SIGKILLs of each victim in the full fault suite")
    parser.addoption("--kill-report", default=None, help="JSON file that lists every kill of the full fault suite")


@pytest.fixture(scope="session")
def made_corpus(made_once: Callable[..., Path]) -> str:
    """104 samples: 101 distinct good images, 2 damaged ones, 1 repeat; 208 prompts."""
    return corpus_of(made_once, "made-corpus", RUN_SETTINGS["images"])


def corpus_of(made_once: Callable[..., Path], name: str, images: int) -> str:
    """Made where it is not there."""

    def make(folder: Path) -> str:
        return make_corpus(folder, images, samples_per_tar=100, with_faults=True)

    return make(made_once(name, make))


@pytest.fixture(scope="session")
def facts(made_corpus: str) -> Facts:
    return facts_of(made_corpus)


@pytest.fixture(scope="session")
def calm(prune: Callable[..., list[str]], made_corpus: str, made_once: Callable[..., Path]) -> Path:
    """The made corpus pruned in 26 shards with nobody disturbing it."""
    return made_once("calm", lambda output: prune(output, corpus=(made_corpus,), **RUN_SETTINGS["prune"]))


@pytest.fixture(scope="session")
def undisturbed_run(made_corpus: str, facts: Facts, calm: Path) -> Undisturbed:
    return Undisturbed(made_corpus, facts, RUN_SETTINGS, NUM_SHARDS, calm)


@pytest.fixture(scope="session")
def long_run(prune: Callable[..., list[str]], made_once: Callable[..., Path]) -> Undisturbed:
    """320 samples in 40 shards."""
    corpus = corpus_of(made_once, "made-corpus-320", MANY_SETTINGS["images"])
    calm = made_once("calm-320", lambda output: prune(output, corpus=(corpus,), **MANY_SETTINGS["prune"]))
    return Undisturbed(corpus, facts_of(corpus), MANY_SETTINGS, MANY_SHARDS, calm)
