"""Fixtures of the answering side: without a model, and with a few images of the bundled corpus."""

from pathlib import Path

import pytest

from tests.answer.fakes import FakeAnswerer


@pytest.fixture
def answerer() -> FakeAnswerer:
    return FakeAnswerer()


@pytest.fixture(scope="session")
def few(prune, made_once) -> Path:
    """Six images of the bundled corpus in three shards, and their prompts."""
    return made_once("served-few", lambda output: prune(output, limit=6, shard_size=2, max_tokens="8"))
