"""When memory runs out: telling it from other failures, and starting again at half the batch.

Torch is imported where it is needed: the tasks that write go through `pipeline.cluster.attempts` too, and without it.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# What torch says in a plain RuntimeError when the CPU, or a library beside its own allocator, has no memory left.
_SAYINGS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class NoBatchFitsError(Exception):
    """Memory runs out with one item in a batch too; another try would say the same."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this process has no memory left for what was asked."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def release_memory() -> None:
    """Give back what a failed computation held; to be called when its exception, with all its frames, is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def at_fitting_batch(batch_size: int, work: Callable[[int], T]) -> T:
    """The result of `work` at this batch size or, where memory runs out, at a half, a quarter, ... of it.

    Args:
        batch_size: that is asked for.
        work: takes a batch size and does everything from the beginning.

    Raises:
        NoBatchFitsError: memory runs out with one item in a batch.
    """
    size = batch_size
    while True:
        try:
            return work(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise NoBatchFitsError(
                    f"memory runs out with one item in a batch ({_shown(error)}); give each worker more: fewer "
                    "--workers, a whole GPU each (--gpus-per-worker 1), a device with more memory, or --dtype bfloat16"
                ) from error
        size //= 2  # outside of the handler: the exception holds the frames, and these all tensors of the failed batch
        release_memory()


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


class SmallerBatches:
    """Tells the user, once, that a shard was made at a smaller batch size than asked for."""

    def __init__(self, asked: int, say: Callable[[str], None]) -> None:
        self._asked, self._say, self._told = asked, say, False

    def note(self, shard: int, batch_size: int | None) -> None:
        """A shard was committed that was made at this batch size."""
        if self._told or batch_size is None or batch_size >= self._asked:
            return
        self._told = True
        self._say(
            f"shard {shard:08d} ran out of memory at batch size {self._asked} and was done at {batch_size}; further "
            "ones are not told, each commit record names its batch_size; a smaller --batch-size saves the lost starts"
        )
