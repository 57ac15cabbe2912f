"""Shards through stages on Ray Data, and single functions on a worker: the only way work reaches the cluster."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from pipeline.cluster.interpreter import runtime_env
from pipeline.cluster.stopping import StopRequest

# Bound what Ray keeps about finished blocks. Actors start anew for each stream, so it must outlast many such starts.
SHARDS_A_STREAM = 1000
SHARDS_A_STREAM_AND_WORKER = 250

T = TypeVar("T")


class WorkerDiedError(Exception):
    """The process that ran a function was killed or ran out of memory."""


@dataclass(frozen=True)
class Stage:
    """A step that takes and gives a shard as one Arrow table, in one call.

    Two neighbouring stages of a stream must differ in `num_cpus`, else Ray fuses them and they no longer overlap.
    """

    work: Callable[..., Any]  # a function of table and settings, run in tasks; or a class, made of settings by an actor
    settings: Any
    num_cpus: float
    processes: int | None = None  # at most so many at once; None: as many as there is room for. A class needs a number
    num_gpus: float = 0.0  # of each process
    python: str | None = None  # interpreter of the environment that processes run in; None: as everywhere


def stream_shards(shards: Sequence[int], stages: Sequence[Stage], stop: StopRequest) -> Iterator[dict[str, Any]]:
    """Rows that the last stage gives, as shards finish. No further shard begins once `stop` is made.

    The first stage gets tables of one row, `shard`.
    """
    workers = max(stage.processes or 1 for stage in stages)
    size = max(SHARDS_A_STREAM, SHARDS_A_STREAM_AND_WORKER * workers)
    for begin in range(0, len(shards), size):
        if stop.made:
            return
        yield from stream_items([{"shard": shard} for shard in shards[begin : begin + size]], stages)


def stream_items(items: Sequence[dict[str, Any]], stages: Sequence[Stage]) -> Iterator[dict[str, Any]]:
    """Rows that the last stage gives; the first gets each item as a table of one row."""
    dataset: ray.data.Dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
    for stage in stages:
        dataset = _map_shards(dataset, stage, len(items))
    yield from dataset.iter_rows()


def _map_shards(dataset: ray.data.Dataset, stage: Stage, most: int) -> ray.data.Dataset:
    options: dict[str, Any] = {"num_cpus": stage.num_cpus}
    if stage.num_gpus:  # not `num_gpus=`, which refuses whole blocks; docs/decisions/0004-gpus-of-whole-blocks.md
        options["ray_remote_args_fn"] = partial(dict, num_gpus=stage.num_gpus)
    if stage.python is not None:
        options["runtime_env"] = runtime_env(stage.python)
    if isinstance(stage.work, type):
        assert stage.processes is not None, "a pool of actors has a size"
        options.update(
            compute=ActorPoolStrategy(size=min(stage.processes, most)), fn_constructor_args=(stage.settings,)
        )
    else:
        if stage.processes is not None:
            options["compute"] = TaskPoolStrategy(size=min(stage.processes, most))  # Ray warns of a size over it
        options["fn_args"] = (stage.settings,)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
        return dataset.map_batches(stage.work, batch_size=None, batch_format="pyarrow", **options)


def run_on_worker(function: Callable[..., T], *arguments: Any, num_gpus: float = 0.0, **named: Any) -> T:
    """The result of one call on some worker, which is not tried again.

    Raises:
        WorkerDiedError: its process did not survive it.
    """
    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0)(function)
    try:
        result: T = ray.get(remote.remote(*arguments, **named))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise WorkerDiedError(str(error)) from error
    return result
