"""`--batch-size auto`: measured once, on the worker that will do the work, and stored in the job record."""

import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from pipeline.cluster.device import worker_device
from pipeline.cluster.stream import WorkerDiedError, run_on_worker
from pipeline.errors import UserError
from pipeline.families.checkpoint import open_checkpoint
from pipeline.prune.encode import EncodeSettings, load_encoder
from pipeline.prune.select import select_tokens

LARGEST = 256
WORTH = 1.05  # a larger batch must be this much faster an image
PHOTO = (640, 480)


def find_batch_size(settings: EncodeSettings, gpus_per_worker: float) -> int:
    """Images a forward pass at which a worker encodes, scores and ranks fastest; measured by one Ray task.

    Raises:
        UserError: that task's process died.
    """
    try:
        return run_on_worker(_measure, settings, num_gpus=gpus_per_worker)
    except WorkerDiedError as error:
        raise UserError(
            "--batch-size auto: the worker that measured it died: killed, or out of memory; give a number"
        ) from error


def _measure(settings: EncodeSettings) -> int:
    device = worker_device(settings.device)
    encoder = load_encoder(settings, device)
    checkpoint, family = open_checkpoint(settings.model)
    noise = np.random.default_rng(0).integers(0, 256, (PHOTO[1], PHOTO[0], 3), dtype=np.uint8)
    pixels = family.preparer(checkpoint).prepare(Image.fromarray(noise))

    def work(size: int) -> None:
        images = encoder.encode([pixels] * size, [(PHOTO[1], PHOTO[0])] * size)
        select_tokens(images, ["0" * 64] * size, encoder.projector, settings.select, {})
        if device.type == "cuda":
            torch.cuda.synchronize()

    return smallest_fast_size(lambda size: _seconds(work, size))


def smallest_fast_size(seconds_of: Callable[[int], float | None]) -> int:
    """The smallest power of two beyond which doubling is not worth it.

    Args:
        seconds_of: time of one batch of that size; None when it does not fit into memory.
    """
    best_size, best_rate = 1, 0.0
    size = 1
    while size <= LARGEST:
        seconds = seconds_of(size)
        if seconds is None:
            break
        rate = size / seconds
        if rate > best_rate * WORTH:
            best_size, best_rate = size, rate
        elif size >= 4 * best_size:
            break
        size *= 2
    return best_size


def _seconds(work: Callable[[int], None], size: int) -> float | None:
    try:
        work(size)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            work(size)
            times.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return sorted(times)[1]
