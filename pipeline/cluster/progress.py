"""Progress a person can read: one line now and then, on standard error."""

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


@dataclass
class Progress:
    """Counts work done and says so at most every `every_sec` seconds."""

    total: int
    unit: str  # "images", "prompts"
    every_sec: float = 5.0
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    done: int = 0
    errors: int = 0
    _started: float = field(default_factory=time.monotonic)
    _first: float | None = None
    _said: float = 0.0

    def add(self, done: int, errors: int = 0) -> None:
        """Note finished work."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        self.done += done
        self.errors += errors
        if now - self._said >= self.every_sec or self.done >= self.total:
            self._said = now
            self._print(now)

    def _print(self, now: float) -> None:
        elapsed = max(now - self._started, 1e-9)
        rate = self.done / elapsed
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        share = f"{100 * self.done / self.total:.0f} %" if self.total else "-"
        print(
            f"{self.done:,} of {self.total:,} {self.unit} ({share}), {rate:.1f} {self.unit}/s, "
            f"{self.errors:,} errors, {_clock(left)} left",
            file=self.stream,
            flush=True,
        )


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
