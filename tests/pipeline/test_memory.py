"""Running out of memory: what counts as it, and starting again at half the batch."""

import weakref

import pytest
import torch

from pipeline.cluster.memory import NoBatchFitsError, SmallerBatches, at_fitting_batch, is_out_of_memory


def error_of(ask) -> Exception:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    return caught.value


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(error_of(lambda: torch.empty(1 << 60, dtype=torch.uint8)))  # what torch says on a CPU
    assert is_out_of_memory(error_of(lambda: bytearray(1 << 62)))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(error_of(lambda: torch.zeros(2) @ torch.zeros(3)))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(OSError(12, "Cannot allocate memory"))


class Large:
    """Something that fills the memory."""


def test_halves_down_to_what_fits_and_keeps_nothing_of_what_failed():
    held: list[weakref.ref] = []
    sizes = []

    def work(size: int) -> str:
        assert all(one() is None for one in held), "the failed batch is still in memory"
        sizes.append(size)
        large = Large()
        held.append(weakref.ref(large))
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return f"done at {size}"

    assert at_fitting_batch(13, work) == "done at 3"
    assert sizes == [13, 6, 3]


def test_with_one_item_it_says_what_to_do_and_other_errors_pass():
    def full(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    with pytest.raises(
        NoBatchFitsError, match=r"one item in a batch \(OutOfMemoryError: .*2.00 GiB.\); give .*--workers"
    ):
        at_fitting_batch(4, full)

    def broken(size: int) -> None:
        raise RuntimeError(f"shapes at {size}")

    with pytest.raises(RuntimeError, match="shapes at 4"):
        at_fitting_batch(4, broken)


def test_the_user_is_told_once():
    said: list[str] = []
    smaller = SmallerBatches(8, said.append)
    for shard, size in ((0, 8), (1, None), (2, 4), (3, 2)):
        smaller.note(shard, size)
    (line,) = said
    assert line.startswith("shard 00000002 ran out of memory at batch size 8 and was done at 4;")
