"""Ctrl-C and SIGTERM: the shards in flight are finished, no further one is begun."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pipeline.cluster.run_folder import StopFile


@dataclass
class StopRequest:
    """Whether to stop, seen by workers as a file in the run's folder."""

    file: StopFile
    signal_number: int | None = None  # which signal asked for it

    @property
    def made(self) -> bool:
        return self.file.is_there

    def make(self) -> None:
        """Ask every worker to begin no further shard."""
        self.file.write()


@contextlib.contextmanager
def stop_on_signals(file: StopFile, say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a stop request; the second does what it did before this block.

    Outside the main thread signals can't be handled; the request can still be made by hand.
    """
    request = StopRequest(file)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if request.signal_number is not None:
            signal.signal(number, handlers[number])
            signal.raise_signal(number)
            return
        request.signal_number = number
        request.make()
        say(f"{signal.Signals(number).name}: finishing the shards in flight; once more to leave at once")

    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
