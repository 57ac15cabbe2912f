"""One shard through one stage: under a time-out that names it, tried again when it fails, given up in the open.

A failed shard becomes one row with its `failure`, which later stages pass on to the driver; other shards go on.
"""

import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError

STOPPED = "stopped before it began"
BAD_INPUT = "bad input: "  # begins a failure that no retry and no other shard can escape


@dataclass(frozen=True)
class Policy:
    """How often a stage is tried on a shard, and how long one try may take."""

    retries: int = 2
    timeout_sec: float = 3600.0
    pause_sec: float = 1.0  # before the first retry; doubled before each further one


class StageRunner:
    """Runs a stage's function on shards, in a thread of its own so that a stuck call can be left behind.

    Args:
        stage: name, for messages.
        policy: retries and time-out.
        prepare: called once in each such thread before its first shard.
    """

    def __init__(self, stage: str, policy: Policy, prepare: Callable[[], None] = lambda: None) -> None:
        self._stage = stage
        self._policy = policy
        self._prepare = prepare
        self._thread = self._new_thread()

    def run(self, shard: int, schema: pa.Schema, function: Callable[[], pa.Table]) -> pa.Table:
        """The function's table, or one row of `schema` with `shard` and `failure`."""
        pause = self._policy.pause_sec
        failure = ""
        for attempt in range(self._policy.retries + 1):
            if attempt:
                time.sleep(pause)
                pause *= 2
            future = self._thread.submit(function)
            try:
                return future.result(self._policy.timeout_sec)
            except Exception as error:  # reported to the driver with the shard's number, never swallowed
                if isinstance(error, UserError) and not error.passing:
                    return failed_shard(shard, schema, f"{BAD_INPUT}{error}")
                if isinstance(error, TimeoutError) and not future.done():
                    self._thread.shutdown(wait=False)
                    self._thread = self._new_thread()
                    failure = f"stage {self._stage} took longer than {self._policy.timeout_sec:g} s (--shard-timeout)"
                else:
                    trace = "".join(traceback.format_exception(error)).strip()
                    failure = f"stage {self._stage}: {type(error).__name__}: {error}\n{trace}"
        return failed_shard(shard, schema, f"{failure}\n(tried {self._policy.retries + 1} times)")

    def _new_thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix=self._stage, initializer=self._prepare)


def failed_shard(shard: int, schema: pa.Schema, failure: str) -> pa.Table:
    """The one row that stands for a shard that was given up (or not begun)."""
    return pa.Table.from_pylist([{"shard": shard, "failure": failure}], schema)


def failure_of(batch: pa.Table) -> str | None:
    """The failure an earlier stage passed on, or None for a healthy shard."""
    value: Any = batch["failure"][0].as_py()
    return value
