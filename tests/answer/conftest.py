"""Fixtures of the answering side without a model."""

import pytest

from tests.answer.fakes import FakeAnswerer


@pytest.fixture
def answerer() -> FakeAnswerer:
    return FakeAnswerer()
