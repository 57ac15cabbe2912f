"""The measured batch size: the smallest beyond which doubling is not worth it."""

import os
import signal
from unittest import mock

import pytest

from pipeline.budget import parse_budget
from pipeline.errors import UserError
from pipeline.prune.encode import EncodeSettings
from pipeline.prune.select import SelectSettings
from pipeline.prune.tune import LARGEST, find_batch_size, smallest_fast_size


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


@pytest.mark.usefixtures("ray_session")
def test_a_measuring_worker_that_dies_is_bad_input_not_a_traceback(tiny_llava):
    def measure(_settings: EncodeSettings) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 1

    settings = EncodeSettings(tiny_llava, "float32", 0, "model", SelectSettings(parse_budget("16", "")))
    with (
        mock.patch("pipeline.prune.tune._measure", measure),
        pytest.raises(UserError, match="--batch-size auto: the worker that measured it died"),
    ):
        find_batch_size(settings, 0.0)
