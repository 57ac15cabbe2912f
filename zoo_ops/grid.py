"""A nested, evenly spread order of token positions: the control that looks at no feature."""

from functools import lru_cache

import torch
from torch import Tensor

BITS = 31
# Dyadic points lie on the borders between tokens; a hair further on, each has one nearest token, in its own box.
OFF_BORDER = 2.0**-20


def spread_points(count: int, axes: int) -> Tensor:
    """First `count` points of Sobol's (0, 2)-sequence in the unit square (van der Corput's on one axis), float64.

    Of the first 2^k points, every cell of any division of the square into 2^k equal dyadic boxes holds one. Both
    coordinates are shifted by one half, so that the first point is the centre.
    """
    numbers = torch.arange(count, dtype=torch.int64)
    columns = []
    for axis in range(axes):
        value, direction = torch.full_like(numbers, 1 << (BITS - 1)), 1 << (BITS - 1)
        for bit in range(BITS):
            value ^= ((numbers >> bit) & 1) * direction
            direction = direction >> 1 if axis == 0 else direction ^ (direction >> 1)
        columns.append(value.double() / 2**BITS + OFF_BORDER)
    return torch.stack(columns, dim=1)


def grid_order(positions_NC: Tensor, *, num_picks: int) -> Tensor:
    """Indices of the first `num_picks` tokens, (num_picks,) int64: pick t is the free token nearest to spread point t.

    positions_NC: (N, 1) or (N, 2) coordinates on the CPU, any numbers; their bounding box is the unit square. Ties go
    to the smaller index.
    """
    key = tuple(map(tuple, positions_NC.double().tolist()))
    return _grid_order(key, num_picks).clone()


@lru_cache(maxsize=64)
def _grid_order(positions: tuple[tuple[float, ...], ...], num_picks: int) -> Tensor:
    place = torch.tensor(positions, dtype=torch.float64)
    low, high = place.amin(0), place.amax(0)
    # Half a cell of margin, where neighbours are one apart.
    place = (place - low + 0.5) / (high - low + 1.0)
    taken = torch.zeros(place.shape[0], dtype=torch.float64)
    order_N = torch.arange(place.shape[0])
    picks = []
    for point in spread_points(num_picks, place.shape[1]):
        gap = (place - point).square().sum(1) + taken
        pick = int(torch.where(gap == gap.amin(), order_N, place.shape[0]).amin())
        taken[pick] = torch.inf
        picks.append(pick)
    return torch.tensor(picks, dtype=torch.int64)
