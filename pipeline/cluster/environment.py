"""Small things both jobs need to resolve their settings."""

import importlib.metadata
import platform
from collections.abc import Iterable
from typing import Any

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint


def check_at_least_one(settings: Any, names: Iterable[str]) -> None:
    """Refuse counts below 1.

    Raises:
        UserError: naming the option.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least 1")


def check_policy(retries: int, shard_timeout_sec: float) -> None:
    """Refuse retries and time-outs that make no sense.

    Raises:
        UserError: naming the option.
    """
    if retries < 0:
        raise UserError(f"--retries {retries}: expected at least 0")
    if not shard_timeout_sec > 0:
        raise UserError(f"--shard-timeout {shard_timeout_sec}: expected seconds above 0")


def own_dtype(config: Any) -> str:
    """The dtype a checkpoint's config asks for; float32 when it says none."""
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def environment(checkpoint: Checkpoint) -> dict[str, str]:
    """Versions and hardware, and where the model came from, for `_job.json`."""
    packages = ("torch", "transformers", "ray", "pyarrow", "webdataset", "pillow", "safetensors", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        **{name: importlib.metadata.version(name) for name in packages},
        "model": checkpoint.pinned,
    }
