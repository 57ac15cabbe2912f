"""Small things both jobs need to resolve their settings."""

import importlib.metadata
import platform

from pipeline.families.base import Checkpoint
from pipeline.families.checkpoint import stored_dtype


def own_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that Transformers would load a checkpoint in: its config's or, without one, its first tensor's."""
    dtype = getattr(checkpoint.config, "dtype", None) or stored_dtype(checkpoint)
    return str(dtype).removeprefix("torch.")


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
