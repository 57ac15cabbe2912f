"""Which elementwise activation a callable is, and its derivative in one pass over memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

QUICK_GELU_SLOPE = 1.702


def _quick_gelu(pre: Tensor) -> Tensor:
    return pre * torch.sigmoid(QUICK_GELU_SLOPE * pre)


KNOWN_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda pre: pre,
    "gelu": functional.gelu,
    "gelu_tanh": lambda pre: functional.gelu(pre, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "silu": functional.silu,
    "relu": functional.relu,
}


def identify_activation(activation: Callable[[Tensor], Tensor] | None) -> str | None:
    """Name of the known function that `activation` computes, None when it is none of them.

    Decided by values, not by class: the same function comes under many class names (and one class name
    may hold several functions). 257 points in [-8, 8], float32, agreement to 1e-6; the two closest known
    functions, GELU and its tanh form, are 5e-4 apart. A callable that cannot take the probe counts as unknown.
    """
    if activation is None:
        return "identity"
    probe = torch.linspace(-8.0, 8.0, 257)
    try:
        with torch.no_grad():
            # A copy: an activation may work in place.
            value = activation(probe.clone())
    except Exception:
        return None
    if not isinstance(value, Tensor) or value.shape != probe.shape:
        return None
    value = value.to(device="cpu", dtype=torch.float32)
    for name, function in KNOWN_ACTIVATIONS.items():
        if torch.allclose(value, function(probe), rtol=1e-6, atol=1e-6):
            return name
    return None


_BACKWARD_KERNELS: dict[str, tuple[Any, dict[str, str]]] = {
    "gelu": (torch.ops.aten.gelu_backward, {"approximate": "none"}),
    "gelu_tanh": (torch.ops.aten.gelu_backward, {"approximate": "tanh"}),
    "silu": (torch.ops.aten.silu_backward, {}),
}


def activation_derivative(kind: str, pre: Tensor) -> Tensor:
    """act'(pre), elementwise, same shape and dtype; `kind` is a key of KNOWN_ACTIVATIONS.

    GELU, SiLU: the backward kernels with a gradient of one, because they read and write memory once.
    ReLU: 0 at 0, as autograd has it.
    """
    if kind in _BACKWARD_KERNELS:
        kernel, options = _BACKWARD_KERNELS[kind]
        derivative: Tensor = kernel(torch.ones_like(pre[:1]).expand_as(pre), pre, **options)
        return derivative
    if kind == "quick_gelu":
        gate = torch.sigmoid(QUICK_GELU_SLOPE * pre)
        return gate * (1.0 + QUICK_GELU_SLOPE * pre * (1.0 - gate))
    if kind == "relu":
        return (pre > 0).to(pre.dtype)
    if kind == "identity":
        return torch.ones_like(pre)
    raise ValueError(f"activation kind {kind!r} is unknown; expected one of {sorted(KNOWN_ACTIVATIONS)}")
