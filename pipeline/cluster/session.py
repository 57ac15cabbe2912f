"""Ray as this project uses it: quiet, started locally unless an address is given, stopped only if started here."""

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from pipeline.errors import UserError


@contextmanager
def ray_session(address: str | None, num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the time of the block.

    Args:
        address: of a running cluster, or None for a private local one, which is shut down at the end.
        num_cpus: CPUs of the private cluster; None: all of the machine.
    """
    started = not ray.is_initialized()
    if started:
        with _own_sigterm(), warnings.catch_warnings(), _muted_stderr():
            warnings.simplefilter("ignore")  # one FutureWarning about accelerator variables per start
            ray.init(
                address=address or "local",
                num_cpus=None if address else num_cpus,
                include_dashboard=None if address else False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    quiet_ray_data()
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = _user_error_behind(error)
        if cause is not None:
            raise cause from error
        raise
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does: Ray makes it an exit with status 15, and its core writes a stack of its own to it."""
    handler = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    terminated = False
    try:
        yield
    except SystemExit as leaving:  # Ray's answer to the signal while it starts
        terminated = in_main_thread and leaving.code == signal.SIGTERM
        if not terminated:
            raise
    finally:
        if in_main_thread and handler is not None:  # None: not set from Python
            signal.signal(signal.SIGTERM, handler)
        if terminated:
            signal.raise_signal(signal.SIGTERM)


def _user_error_behind(error: BaseException) -> UserError | None:
    """The bad input that made a remote task fail, if that is what made it fail."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop()
        if one is None or one in seen:
            continue
        if type(one) is UserError:
            return one
        seen.append(one)
        queue += [getattr(one, "cause", None), one.__cause__, one.__context__]
    return None


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Hold back what native code writes to standard error in the block; let it out if the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(saved, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def quiet_ray_data() -> None:
    """Silence Ray Data's own progress bars and notices, and let a block hold a whole shard."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_operator_progress_bars = False
    context.target_max_block_size = None  # a shard travels as one block
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def cluster_cpus() -> int:
    """CPUs the cluster has, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def cluster_gpus() -> list[float]:
    """GPUs of each node that has any."""
    gpus = [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return [count for count in gpus if count > 0]
