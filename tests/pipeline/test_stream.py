"""What Ray is asked for, without Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipeline.cluster import interpreter, stream
from pipeline.cluster.stream import Stage, stream_items


class Asked:
    """A dataset that notes the pools of its stages."""

    def __init__(self) -> None:
        self.pools: list[Any] = []
        self.environments: list[Any] = []

    def map_batches(self, _work: object, *, compute: Any = None, runtime_env: Any = None, **_: object) -> "Asked":
        self.pools.append(compute)
        self.environments.append(runtime_env)
        return self

    def iter_rows(self) -> list[dict[str, Any]]:
        return []


@pytest.mark.parametrize(("items", "size"), [(1, 1), (3, 3), (9, 4)])
def test_no_stage_gets_more_processes_than_there_are_shards(monkeypatch, items, size):
    """Ray warns of it, and the processes would be started for nothing."""

    def function(table: pa.Table, _settings: object) -> pa.Table:
        return table

    asked = Asked()
    monkeypatch.setattr(stream, "ray", SimpleNamespace(data=SimpleNamespace(from_items=lambda *_, **__: asked)))
    stages = [Stage(function, None, 0.25, processes=4), Stage(type("Model", (), {}), None, 1.0, processes=4)]
    assert list(stream_items([{"shard": n} for n in range(items)], stages)) == []
    tasks, actors = asked.pools
    assert (tasks.size, actors.max_size) == (size, size)


def test_a_stage_runs_in_the_environment_of_its_interpreter(monkeypatch):
    """It finds this project's code as the driver does."""
    asked = Asked()
    monkeypatch.setattr(stream, "ray", SimpleNamespace(data=SimpleNamespace(from_items=lambda *_, **__: asked)))
    model = type("Model", (), {})
    stages = [Stage(model, None, 1.0, processes=1), Stage(model, None, 0.5, processes=1, python="/envs/vllm/python")]
    list(stream_items([{"shard": 0}], stages))
    own, other = asked.environments
    assert own is None
    assert other["py_executable"] == "/envs/vllm/python"
    code = Path(other["env_vars"]["PYTHONPATH"])
    assert (code / "pipeline" / "cluster" / "stream.py").samefile(stream.__file__)


def test_other_packages_than_this_project_are_not_shown_to_another_environment(monkeypatch):
    monkeypatch.setattr(interpreter, "__file__", "/somewhere/site-packages/pipeline/cluster/interpreter.py")
    assert interpreter.runtime_env("/envs/vllm/python") == {"py_executable": "/envs/vllm/python"}
