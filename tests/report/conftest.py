"""Fixtures of tests of queries: a made artifact with answers at three budgets."""

import pytest

from benchmarks.made_artifact import Made, make_artifact
from tests.report.worked_out import FORM


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    return make_artifact(tmp_path_factory.mktemp("made"), FORM, processes=1)
