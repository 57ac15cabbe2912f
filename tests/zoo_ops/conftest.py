"""Projectors and features of odd sizes, shared by the tests of the operations."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

ACTIVATIONS: dict[str, Callable[[], Any]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": lambda: QuickGELU(),
    "silu": nn.SiLU,
    "relu": nn.ReLU,
}


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_mlp() -> Callable[..., nn.Sequential]:
    def make(
        width_in: int = 60,
        hidden: int = 89,
        width_out: int = 70,
        *,
        activation: str = "gelu",
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> nn.Sequential:
        layers = [
            nn.Linear(width_in, hidden, bias=bias),
            ACTIVATIONS[activation](),
            nn.Linear(hidden, width_out, bias=bias),
        ]
        return nn.Sequential(*layers).to(dtype)

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
