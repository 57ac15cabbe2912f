"""How the model actor keeps a GPU busy: nothing waits for it but the results of a batch, which come in one copy.

On the CPU there is nothing to wait for: the same steps run one after the other, without a copy.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

from zoo_ops import host_buffer

Batch = TypeVar("Batch")
Prepared = TypeVar("Prepared")
Launched = TypeVar("Launched")
Result = TypeVar("Result")

IN_FLIGHT = 2  # batches that were launched and of which the results are not all there


class Download:
    """Tensors of a device on their way to the host, all in one copy."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._tensors, self._ready = list(tensors), None
        if device.type == "cpu":
            return
        # The widest numbers first, so that each lies where its width asks for.
        order = sorted(range(len(tensors)), key=lambda number: -tensors[number].element_size())
        flat = [tensors[number].reshape(-1).view(torch.uint8) for number in order]
        joined = torch.cat(flat)
        buffer = host_buffer(tuple(joined.shape), torch.uint8, device)
        buffer.copy_(joined, non_blocking=True)
        parts = buffer.split([part.shape[0] for part in flat])
        for number, part in zip(order, parts, strict=True):
            self._tensors[number] = part.view(tensors[number].dtype).view(tensors[number].shape)
        if device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, when they have come."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._tensors


class Laps:
    """Seconds of what a batch goes through, by the device's own clock where work goes on after it was launched."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self.lap("")

    def lap(self, name: str) -> None:
        """What was done since the last lap was this."""
        if not self._on_cuda:
            self._marks.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((name, event))

    def add_to(self, seconds: dict[str, float]) -> None:
        """Add the time of each lap; to be called when the batch is done."""
        for (_, begin), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            took = begin.elapsed_time(end) / 1000 if self._on_cuda else end - begin
            seconds[name] = seconds.get(name, 0.0) + took


class _Here(Executor):
    """Does what is submitted at once, in the thread that submits it."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(work(*args, **kwargs))
        return future


def worked_ahead(
    batches: Sequence[Batch],
    prepare: Callable[[Batch], Prepared],
    launch: Callable[[Prepared], Launched],
    finish: Callable[[Launched], Result],
    device: torch.device,
) -> Iterator[Result]:
    """What `finish` makes of each batch, in their order.

    A thread prepares the next batch while this one launches one, and a further thread waits for those that were
    launched and finishes them. What one of them raises is raised here.
    """
    with ExitStack() as stack:
        # Under their names a time-out tells where they were.
        threads = [_Here() if device.type == "cpu" else ThreadPoolExecutor(1, name) for name in ("prepare", "finish")]
        preparing, finishing = (stack.enter_context(thread) for thread in threads)
        in_flight: deque[Future[Result]] = deque()
        ahead = preparing.submit(prepare, batches[0]) if batches else None
        for number in range(len(batches)):
            assert ahead is not None
            prepared, ahead = ahead.result(), None
            if number + 1 < len(batches):
                ahead = preparing.submit(prepare, batches[number + 1])
            in_flight.append(finishing.submit(finish, launch(prepared)))
            del prepared
            if len(in_flight) >= IN_FLIGHT:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
