"""Leaving at once when the user or the system asks for it, before a job has shards in flight that it could finish.

Imports nothing large: the entry points call it before they import anything else, so that it holds while they do.
"""

import os
import signal
from functools import partial
from types import FrameType

_SAID = {
    signal.SIGINT: "interrupted; run the same command again to resume",
    signal.SIGTERM: "terminated; run the same command again to resume",
}


def leave_on_signals() -> None:
    """From now on SIGINT and SIGTERM end this process with one sentence and status 128 + number.

    Not by an exception: it would come up wherever the libraries happen to be, which do not expect it there and print
    their own tracebacks. Nothing is lost by it: what was half-written is removed by the next run, the lock goes with
    the process, and Ray's own processes end with the one that started them.
    """
    errors = os.dup(2)  # standard error may be held back, or closed, when the signal comes
    for number in _SAID:
        signal.signal(number, partial(_leave, errors))


def _leave(errors: int, number: int, _frame: FrameType | None) -> None:
    try:
        os.write(errors, f"{_SAID[signal.Signals(number)]}\n".encode())
    finally:  # also where nobody reads standard error any more
        os._exit(128 + number)
