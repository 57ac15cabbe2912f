"""Float32 products are float32, whatever the process has allowed elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Within: float32 matrix products without TF32 (CUDA) or bfloat16 (CPU) shortcuts; restored on leaving.

    The settings are the process's, so a thread that runs at the same time sees them too.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    # "none" takes the backend's default, which for products is full float32, unless a wider setting says otherwise.
    if all(value == "ieee" for value in before):
        yield
        return
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


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
