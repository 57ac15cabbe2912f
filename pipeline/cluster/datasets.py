"""A Ray Dataset whose rows tasks read, each from one item, with tensors of any shape in its columns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.data.extensions import ArrowPythonObjectArray, ArrowVariableShapedTensorArray

_MOST_BLOCKS = 1000  # in which the items are sent out

RayDataset = ray.data.Dataset  # for those who may not import Ray
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Rows:
    """Some rows of a dataset, at least one."""

    table: pa.Table
    tensors: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)  # a column each, of one dtype and rank
    objects: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # a column each, for which Arrow has no type


def dataset_of(
    items: Sequence[Any],
    read: Callable[[Any, Settings], Iterator[Rows]],
    settings: Settings,
    *,
    num_cpus: float,
    concurrency: int | None,
) -> RayDataset:
    """The rows that `read` gives of each item. Nothing is read before somebody asks for rows.

    Args:
        items: of few bytes each.
        read: gives the rows of one item, in a task.
        settings: its second argument.
        num_cpus: of a task.
        concurrency: tasks at once at most; None: as many as there is room for.
    """
    dataset = ray.data.from_items([{"item": item} for item in items], override_num_blocks=min(len(items), _MOST_BLOCKS))
    most: dict[str, Any] = {} if concurrency is None else {"concurrency": concurrency}
    return dataset.map_batches(
        partial(_read_one, read), fn_args=(settings,), batch_size=1, batch_format="pyarrow", num_cpus=num_cpus, **most
    )


def _read_one(
    read: Callable[[Any, Settings], Iterator[Rows]], batch: pa.Table, settings: Settings
) -> Iterator[pa.Table]:
    (item,) = batch["item"].to_pylist()
    for rows in read(item, settings):
        table = rows.table
        for name, tensors in rows.tensors.items():
            table = table.append_column(name, ArrowVariableShapedTensorArray.from_numpy(list(tensors)))
        for name, objects in rows.objects.items():
            table = table.append_column(name, ArrowPythonObjectArray.from_objects(list(objects)))
        yield table
