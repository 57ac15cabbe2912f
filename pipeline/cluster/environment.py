"""Small things both jobs need to resolve their settings."""

import importlib.metadata
import platform
from typing import Any

from pipeline.families.base import Checkpoint


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
