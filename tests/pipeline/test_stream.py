"""What Ray is asked for, without Ray."""

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipeline.cluster import stream
from pipeline.cluster.stream import Stage, stream_items


class Asked:
    """A dataset that notes the pools of its stages."""

    def __init__(self) -> None:
        self.pools: list[Any] = []

    def map_batches(self, _work: object, *, compute: Any = None, **_: object) -> "Asked":
        self.pools.append(compute)
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
