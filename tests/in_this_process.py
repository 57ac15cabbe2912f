"""Jobs that work in this process, one shard after another: for tests of what a job does, not of how Ray does it.

Ray takes 5 to 15 seconds of processor time a job to start processes that import torch. Here the calls that the project
makes to Ray are answered in this process, and everything above them is the real code. What crosses to a worker is
pickled and unpickled on its way, as Ray does. What Ray itself does (processes that die, blocks, GPUs, stopping) is
tested on Ray, against the bytes that are written here.

    python -m tests.in_this_process jobs.prune_corpus --corpus ...     a job's command, so run
"""

import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch
from ray import cloudpickle

from pipeline.cluster import attempts, session, stream

CPUS = 2


class Dataset:
    """The part of `ray.data.Dataset` that `pipeline.cluster.stream` uses."""

    def __init__(self, blocks: Callable[[], Iterator[pa.Table]]) -> None:
        self._blocks = blocks

    def map_batches(
        self,
        work: Callable[..., Any],
        *,
        batch_size: int | None,
        batch_format: str,
        fn_args: tuple[Any, ...] = (),
        fn_constructor_args: tuple[Any, ...] = (),
        **_: object,
    ) -> "Dataset":
        assert (batch_size, batch_format) == (None, "pyarrow"), "a stage takes a shard whole"

        def blocks() -> Iterator[pa.Table]:
            function, arguments, made_of = as_sent((work, fn_args, fn_constructor_args))
            if isinstance(function, type):
                function = function(*made_of)
            for block in self._blocks():
                yield function(block, *arguments)

        return Dataset(blocks)

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for block in self._blocks():
            yield from block.to_pylist()


def as_sent(what: Any) -> Any:
    """What a worker gets to see of it."""
    return cloudpickle.loads(cloudpickle.dumps(what))


def from_items(items: list[dict[str, Any]], *, override_num_blocks: int) -> Dataset:
    assert override_num_blocks == len(items), "a block an item"
    return Dataset(lambda: (pa.Table.from_pylist([item]) for item in items))


def remote(**_: object) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        def call(*arguments: object, **named: object) -> Any:
            sent, given, keywords = as_sent((function, arguments, named))
            return sent(*given, **keywords)

        return SimpleNamespace(remote=call)

    return decorate


RAY = SimpleNamespace(
    is_initialized=lambda: True,
    cluster_resources=lambda: {"CPU": CPUS},
    remote=remote,
    get=lambda result: result,
    get_runtime_context=lambda: SimpleNamespace(get_actor_id=lambda: "this process"),
    data=SimpleNamespace(from_items=from_items),
    exceptions=ray.exceptions,
)


@contextmanager
def in_this_process(gpus: int = 0) -> Iterator[None]:
    """For the time of the block, what the project asks of Ray is done here, as if on a cluster of 2 CPUs.

    Args:
        gpus: that its one node declares to have.
    """
    nodes = [{"Alive": True, "Resources": {"GPU": float(gpus)}}] if gpus else []
    threads = torch.get_num_threads()  # jobs limit them
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("OMP_NUM_THREADS", "1")
        for module in (attempts, session, stream):
            patch.setattr(module, "ray", SimpleNamespace(**{**vars(RAY), "nodes": lambda: nodes}))
        yield


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with in_this_process():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
