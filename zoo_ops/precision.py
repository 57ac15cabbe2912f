"""Float32 products are float32, whatever the process has allowed elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Within: float32 matrix products without TF32 (CUDA) or bfloat16 (CPU) shortcuts; restored on leaving.

    The settings are the process's, so a thread that runs at the same time sees them too.
    """
    with _products(torch.backends.cuda.matmul, "ieee"), _products(torch.backends.mkldnn.matmul, "ieee"):  # type: ignore[attr-defined]
        yield


@contextmanager
def tf32_on_cuda() -> Iterator[None]:
    """Within: float32 products on CUDA read their operands as TF32 and add in float32; restored on leaving.

    For the closed form alone: its sums over the hidden width average the rounding away, and the rank correlation with
    float64 stays at 0.99999 (benchmarks/half_precision.py), where similarities and finite differences would suffer.
    """
    with _products(torch.backends.cuda.matmul, "tf32"):
        yield


@contextmanager
def _products(backend: Any, precision: str) -> Iterator[None]:
    before = backend.fp32_precision
    if before == precision:
        yield
        return
    try:
        backend.fp32_precision = precision
        yield
    finally:
        backend.fp32_precision = before


def arithmetic_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def own_rows(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`rows` contiguous, in `dtype` and aligned to 64 bytes, copied only where they are not.

    Matrix kernels may round differently by alignment and by shape; with own rows per image, the arithmetic of an
    image does not depend on the batch it came in.
    """
    rows = rows.detach().to(dtype).contiguous()
    return rows.clone() if rows.data_ptr() % 64 else rows
