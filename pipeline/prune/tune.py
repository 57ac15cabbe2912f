"""`--batch-size auto`: measured once, on the worker that will do the work, and stored in the job record.

It is measured with large images of the corpus, so that for models whose pixels grow with the image a batch fits into
memory; a batch of still larger ones is halved as it comes, see `pipeline.cluster.memory`.
"""

import io
import time
from collections.abc import Callable
from itertools import cycle, islice

import numpy as np
import torch

from pipeline.artifact.index import Index
from pipeline.cluster.device import worker_device
from pipeline.cluster.memory import is_out_of_memory, release_memory
from pipeline.cluster.stream import WorkerDiedError, run_on_worker
from pipeline.corpus.decode import DecodeError, decode_image, image_size
from pipeline.corpus.fetch import read_bytes
from pipeline.errors import UserError
from pipeline.families.base import Preparer, UnusableImageError
from pipeline.index.sampling import Sampled, sampled_places
from pipeline.prune.ahead import Laps
from pipeline.prune.encode import EncodeSettings, load_encoder
from pipeline.prune.read import preparer_of
from pipeline.prune.select import TokenSelector

LARGEST = 256
WORTH = 1.05  # a larger batch must be this much faster an image
SAMPLED = 512  # images of the corpus that are looked at
MEASURED = 8  # the largest of these, of which batches are made

Prepared = tuple[np.ndarray, tuple[int, int]]  # an image's pixels, its height and width


def find_batch_size(settings: EncodeSettings, index: Index, gpus_per_worker: float) -> int:
    """Images a forward pass at which a worker encodes, scores and ranks fastest; measured by one Ray task.

    Raises:
        UserError: that task's process died, or found no image to measure with.
    """
    try:
        measured = run_on_worker(_measure, settings, index, num_gpus=gpus_per_worker)
    except WorkerDiedError as error:
        raise UserError(
            "--batch-size auto: the worker that measured it died: killed, or out of memory; give a number"
        ) from error
    if measured is None:
        raise UserError(
            f"--batch-size auto: none of the images it looked at (up to {SAMPLED}) can be used, so there is nothing to "
            "measure with; give a number"
        )
    return measured


def _measure(settings: EncodeSettings, index: Index) -> int | None:
    """The batch size; None where no image can be used."""
    device = worker_device(settings.device)
    large = large_images(sampled_places(index, SAMPLED), preparer_of(settings.model))
    if not large:
        return None
    encoder = load_encoder(settings, device)
    selector = TokenSelector(encoder.projector, settings.select)

    def work(size: int) -> None:
        pixels, sizes = zip(*islice(cycle(large), size), strict=True)
        images = encoder.encode(encoder.pack(pixels, sizes))
        selector.rank(images, ["0" * 64] * size, Laps(device))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return smallest_fast_size(lambda size: _seconds(work, size))


def large_images(places: list[Sampled], preparer: Preparer) -> list[Prepared]:
    """Of the images at these places those with most prepared pixels, the largest first; those that fail left out."""
    sized = []
    for place in places:
        try:
            size = image_size(io.BytesIO(_bytes_of(place)))
        except DecodeError:
            continue
        if size is not None:
            sized.append((preparer.prepared_bytes(*size), place))
    prepared: list[Prepared] = []
    for _, place in sorted(sized, key=lambda one: one[0], reverse=True):
        if len(prepared) == MEASURED:
            break
        try:
            image = decode_image(_bytes_of(place))
            prepared.append((np.ascontiguousarray(preparer.prepare(image)), (image.height, image.width)))
        except (DecodeError, UnusableImageError, MemoryError):
            continue
    return prepared


def _bytes_of(sampled: Sampled) -> bytes:
    return read_bytes(sampled.place, sampled.image_id)


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
    """The median time of a batch; None when it does not fit into memory."""
    times = []
    try:
        work(size)
        for _ in range(3):
            started = time.perf_counter()
            work(size)
            times.append(time.perf_counter() - started)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if len(times) < 3:
        release_memory()  # outside of the handler: the exception holds the frames, and these the failed batch
        return None
    return sorted(times)[1]
