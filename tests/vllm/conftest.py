"""Where vLLM is: the interpreter of its environment, which `make test-vllm` builds and names in VLLM_PYTHON."""

import os
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter; a test that takes it carries the marker `vllm`."""
    python = os.environ.get("VLLM_PYTHON")
    if python is None:
        pytest.skip("VLLM_PYTHON names no interpreter of an environment with vLLM; `make test-vllm` builds one")
    return python


@pytest.fixture(scope="session")
def run_in_vllm(vllm_python):
    """Run a module of this repository in vLLM's environment."""

    def run(*arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPO), "VLLM_CPU_KVCACHE_SPACE": "1"}
        done = subprocess.run(
            [vllm_python, "-m", *arguments], cwd=REPO, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]

    return run
