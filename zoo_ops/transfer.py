"""Tensors on their way to a device, without waiting for it."""

import torch
from torch import Tensor


def host_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of the host, not filled, between which and `device` copies need not be waited for."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def upload(values: Tensor, device: torch.device) -> Tensor:
    """The values of a tensor of the host on `device`; the host goes on while they are copied.

    The host's tensor itself where `device` is the CPU. From a `host_buffer` the device reads by itself, and keeps it
    until it has done so; other values are copied to one first.
    """
    if device.type == "cpu" or values.device.type != "cpu":
        return values.to(device)
    if device.type == "cuda" and not values.is_pinned():
        values = host_buffer(tuple(values.shape), values.dtype, device).copy_(values)
    return values.to(device, non_blocking=True)
