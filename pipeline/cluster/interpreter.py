"""Workers in a Python environment of their own, which must hold the same Ray and find the same code as this process."""

from pathlib import Path
from typing import Any


def code_folder() -> str | None:
    """The folder to import this project from, where it lies in a checkout.

    None where it is installed among other packages: another environment must not see those.
    """
    folder = Path(__file__).resolve().parents[2]
    return None if folder.name in ("site-packages", "dist-packages") else str(folder)


def runtime_env(python: str) -> dict[str, Any]:
    """What Ray is told, so that a worker runs in the environment of this interpreter."""
    folder = code_folder()
    return {"py_executable": python, **({} if folder is None else {"env_vars": {"PYTHONPATH": folder}})}
