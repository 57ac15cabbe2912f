"""The measured batch size: the smallest beyond which doubling is not worth it."""

import pytest

from pipeline.prune.tune import LARGEST, smallest_fast_size


@pytest.mark.parametrize(
    ("seconds_of", "size"),
    [
        (lambda n: 1.0, LARGEST),  # a batch costs the same whatever its size: take the largest
        (lambda n: 1.0 * n, 1),  # no gain at all
        (lambda n: max(1.0, n / 8), 8),  # full at 8
        (lambda n: None if n > 4 else 1.0, 4),  # memory ends
        (lambda n: 0.9 * n if n == 2 else 1.0 * n, 2),
        (lambda n: 1 + 0.1 * n, 128),
    ],
)
def test_smallest_fast_size(seconds_of, size):
    assert smallest_fast_size(seconds_of) == size
