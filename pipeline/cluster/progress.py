"""Progress a person can read: one line now and then, on standard error.

The rate is that of steady work, after the first piece came back. What it took until then is said apart: processes start
and load the model in it, once, so it says nothing about the work that is left.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from schemas.wording import clock, counted


@dataclass
class Progress:
    """Counts work done, from when it is made, and says so at most every `every_sec` seconds."""

    total: int
    unit: str  # "images", "prompts"
    every_sec: float = 5.0
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    done: int = 0
    errors: int = 0
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _first: tuple[float, int] | None = None  # when the first piece came back, and how much it was
    _said: float = float("-inf")

    def __post_init__(self) -> None:
        self._started = self.clock()

    def add(self, done: int, errors: int = 0) -> None:
        """Note finished work."""
        now = self.clock()
        self.done += done
        self.errors += errors
        if self._first is None:
            self._first = now, self.done
        if now - self._said >= self.every_sec or self.done >= self.total:
            self._said = now
            self._print(now)

    def _print(self, now: float) -> None:
        share = f"{100 * self.done / self.total:.0f} %" if self.total else "-"
        print(
            f"{self.done:,} of {self.total:,} {self.unit} ({share}), {counted(self.errors, 'errors')}, "
            f"{self._pace(now)}",
            file=self.stream,
            flush=True,
        )

    def _pace(self, now: float) -> str:
        """The rate and the time left; before there is a rate, what it took to get so far."""
        assert self._first is not None, "something is done"
        since, before = self._first
        if self.done <= before or now <= since:
            return f"{clock(now - self._started)} with start-up"
        rate = (self.done - before) / (now - since)
        left = max(0, self.total - self.done) / rate
        return f"{rate:.1f} {self.unit}/s, {clock(left)} left"
