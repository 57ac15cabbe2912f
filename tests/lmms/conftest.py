"""Fixtures: lmms-eval's own environment, and folders in place of the data sets that its tasks fetch."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lmms.data_sets import write_data_sets

REPO = Path(__file__).resolve().parents[2]
ENVIRONMENT = REPO / ".venv-lmms" / "bin" / "python"
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def lmms_python() -> str:
    """The Python of lmms-eval's environment; `make test-lmms` names it, and then it must be there."""
    named = os.environ.get("LMMS_PYTHON")
    python = Path(named) if named else ENVIRONMENT
    if python.exists():
        return str(python)
    if named:
        pytest.fail(f"LMMS_PYTHON={named}: there is no such Python; `make lmms-env` makes the environment")
    pytest.skip("lmms-eval's environment is not there; `make test-lmms` makes it and runs these tests")


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with folders in place of the data sets of lmms-eval's tasks."""
    folder = tmp_path_factory.mktemp("data-sets")
    write_data_sets(folder)
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of lmms-eval's programs: no network, and caches that go with the tests."""
    home = str(tmp_path_factory.mktemp("hugging-face"))
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": home, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def script(lmms_python: str, data_sets: Path, environment: dict[str, str]) -> Script:
    """Run a script of the example in lmms-eval's environment, in the folder of the data sets."""

    def run(path: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [lmms_python, str(REPO / path), *map(str, arguments)]
        return subprocess.run(command, cwd=data_sets, env=environment, capture_output=True, text=True)

    return run
