"""One shard through one stage: under a time-out that names it, tried again when it fails, given up in the open.

A shard that fails becomes one row with its status and its failure. Later stages pass this row on to the driver, and
other shards go on. A try counts from its beginning and is written down where it outlives its process, so that a shard
which kills its worker every time, or is stuck every time, is given up like one that raises. A try of a shard for which
memory runs out starts again at half the batch.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TypeVar

import pyarrow as pa
import ray

from pipeline.cluster.memory import NoBatchFitsError, at_fitting_batch
from pipeline.cluster.outcomes import Status, ended_shard
from pipeline.cluster.run_folder import Tries, TriesFolder
from pipeline.errors import UserError

# A call that holds the interpreter lock holds up the time-out's thread too; so long after it the process ends anyway.
_LOCKED_GRACE_SEC = 60.0

Loaded = TypeVar("Loaded")


class ProcessSpentError(Exception):
    """Something in this process broke that the process can't mend. It ends, and Ray starts another for the shard."""


@dataclass(frozen=True)
class Policy:
    """How often a stage is tried on a shard, and how long one try may take."""

    retries: int = 2
    timeout_sec: float = 3600.0
    pause_sec: float = 1.0  # before the first retry; doubled before each further one
    tries: TriesFolder | None = None  # `RunFolder.tries`; None: tries are counted in this process alone


class StageRunner:
    """Runs a stage's function on shards, one at a time.

    Args:
        stage: name, for messages.
        policy: retries and time-out.
    """

    def __init__(self, stage: str, policy: Policy) -> None:
        self._stage = stage
        self._policy = policy

    def run(self, shard: int, schema: pa.Schema, function: Callable[[], pa.Table]) -> pa.Table:
        """The function's table, or the one row of `schema` that says how the shard ended, see `ended_shard`.

        A try that takes too long ends this process: its thread can't be ended otherwise, and would go on using the
        model and the process's settings beside the next shard. So does one that raises `ProcessSpentError`. Ray starts
        another process, with the same shard.
        """
        return self._run(shard, schema, lambda tries, number: self._in_time(tries, number, function))

    def run_batches(
        self, shard: int, schema: pa.Schema, batch_size: int, function: Callable[[int], pa.Table]
    ) -> pa.Table:
        """As `run`, of a function of the batch size: where memory runs out, a try starts again at half of it.

        Every try of every shard begins at `batch_size`, whatever this process met before, so that what becomes of a
        shard does not depend on the worker that had it. Each start has the whole time-out.
        """

        def make(tries: Tries | None, number: int) -> pa.Table:
            return at_fitting_batch(batch_size, lambda size: self._in_time(tries, number, partial(function, size)))

        return self._run(shard, schema, make)

    def _run(self, shard: int, schema: pa.Schema, make: Callable[[Tries | None, int], pa.Table]) -> pa.Table:
        try:
            return self._try(shard, schema, make)
        except NoBatchFitsError as error:
            return ended_shard(
                shard, schema, Status.GIVEN_UP, f"stage {self._stage}: {error}\n{_trace(error)}", self._stage
            )
        except UserError as error:
            if not error.passing:
                return ended_shard(shard, schema, Status.REFUSED, str(error), self._stage)
            return ended_shard(shard, schema, Status.GIVEN_UP, f"stage {self._stage}: {error}", self._stage)
        except OSError as error:
            failure = f"stage {self._stage}: its tries can't be read: {error}"
            return ended_shard(shard, schema, Status.GIVEN_UP, failure, self._stage)

    def _try(self, shard: int, schema: pa.Schema, make: Callable[[Tries | None, int], pa.Table]) -> pa.Table:
        tries = self._policy.tries.of_shard(shard, self._stage) if self._policy.tries else None
        failures = tries.failures() if tries else []
        while len(failures) <= self._policy.retries:
            if failures:
                time.sleep(self._policy.pause_sec * 2 ** (len(failures) - 1))
            if tries:
                tries.note(len(failures), f"stage {self._stage}: {_death()}")
            try:
                return make(tries, len(failures))
            except Exception as error:  # reported to the driver with the shard's number, never swallowed
                if isinstance(error, NoBatchFitsError) or (isinstance(error, UserError) and not error.passing):
                    raise
                failures.append(f"stage {self._stage}: {type(error).__name__}: {error}\n{_trace(error)}")
                is_spent = isinstance(error, ProcessSpentError)
            if tries:
                tries.note(len(failures) - 1, failures[-1])
                if is_spent:
                    end_process()
        failure = f"{failures[-1]}\n(tried {len(failures)} times)"
        return ended_shard(shard, schema, Status.GIVEN_UP, failure, self._stage)

    def load(self, function: Callable[[], Loaded]) -> Loaded:
        """The function's result, in the constructor of an actor. Ray restarts an actor that dies there for ever.

        Raises:
            UserError: this actor died in it as often as a shard is tried.
        """
        if self._policy.tries is None:
            return function()
        tries = self._policy.tries.of_load(str(ray.get_runtime_context().get_actor_id()))
        failures = tries.failures()
        if len(failures) > self._policy.retries:
            raise UserError(
                f"a worker of stage {self._stage} was started {len(failures)} times and each time, before the model "
                f"was loaded, {failures[-1]}; give workers more memory, or run fewer (--workers)"
            )
        tries.note(len(failures), _death())
        loaded = function()
        tries.forget()
        return loaded

    def _in_time(self, tries: Tries | None, number: int, function: Callable[[], pa.Table]) -> pa.Table:
        with self._time_limit(tries, number):
            return function()

    @contextmanager
    def _time_limit(self, tries: Tries | None, number: int) -> Iterator[None]:
        """End this process if the block takes too long, after writing down where it was stuck."""
        stuck, before = threading.get_ident(), set(threading.enumerate())

        def end() -> None:
            try:
                if tries:
                    frames = sys._current_frames()
                    where = f"it was at\n{_stack(frames[stuck])}"
                    # The block may wait for threads of its own.
                    others = set(threading.enumerate()) - before - {threading.current_thread()}
                    for thread in sorted(others, key=lambda one: one.name):
                        if thread.ident in frames:
                            where += f"\nand its thread {thread.name} at\n{_stack(frames[thread.ident])}"
                    took = f"took longer than {self._policy.timeout_sec:g} s (--shard-timeout)"
                    tries.note(number, f"stage {self._stage} {took}; {where}")
            finally:
                end_process()

        limit_sec = min(self._policy.timeout_sec, threading.TIMEOUT_MAX - _LOCKED_GRACE_SEC)
        timer = threading.Timer(limit_sec, end)
        timer.daemon = True
        timer.start()
        faulthandler.dump_traceback_later(limit_sec + _LOCKED_GRACE_SEC, exit=True, file=2)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            timer.cancel()


def end_process() -> None:
    """End this process at once, whatever its threads do; not in an orderly way, so that Ray does its work again."""
    os._exit(1)


def _stack(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame)).strip()


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).strip()


def _death() -> str:
    """What befell a process that began a try and said no more."""
    return f"its worker (process {os.getpid()} on {socket.gethostname()}) died: killed, or out of memory"
