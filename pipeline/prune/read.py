"""Stage read + decode: a shard number in, its index rows with prepared pixels out. Runs in CPU tasks."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.artifact.index import Index
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.outcomes import ENDING, stopped_shard
from pipeline.corpus.decode import DecodeError, decode_image
from pipeline.families.base import Preparer, UnusableImageError
from pipeline.families.checkpoint import open_checkpoint
from pipeline.storage.input_file import InputReadError, open_input
from schemas.tables import INDEX

# Rows of the index plus what reading found. Pixels only where the sample owns its image.
DECODED = pa.schema(
    [
        *INDEX,
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixels", pa.large_binary()),
        ("pixels_shape", pa.list_(pa.int32())),
        ("read_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        *ENDING,
    ]
)


@dataclass(frozen=True)
class ReadSettings:
    """What the read stage needs to know."""

    index: Index
    model: str
    stop_file: Path  # while it exists no further shard is begun
    policy: Policy = Policy()


def read_stage(batch: pa.Table, settings: ReadSettings) -> pa.Table:
    """A block of one row (`shard`) to the shard's rows of `DECODED`."""
    (shard,) = batch["shard"].to_pylist()
    if settings.stop_file.exists():
        return stopped_shard(shard, DECODED, "read")
    return _runner(settings.policy).run(shard, DECODED, lambda: read_shard(shard, settings))


@lru_cache(maxsize=1)
def _runner(policy: Policy) -> StageRunner:
    return StageRunner("read", policy)


def read_shard(shard: int, settings: ReadSettings) -> pa.Table:
    """Read and decode one shard; rows of `DECODED`. A sample that can't be used gets its `reason` and `message`."""
    prepare = _preparer(settings.model).prepare
    rows = settings.index.read_shard(shard).to_pylist()
    seconds = {"read": 0.0, "decode": 0.0}
    for row in rows:
        row.update(dict.fromkeys(("width", "height", "pixels", "pixels_shape")))
        if row["reason"] is None and row["slot"] is not None:
            _decode_row(row, prepare, seconds)
    for row in rows:
        row["read_seconds"], row["decode_seconds"] = seconds["read"], seconds["decode"]
    return pa.Table.from_pylist(rows, DECODED)


def _decode_row(row: dict[str, Any], prepare: Callable[[Any], np.ndarray], seconds: dict[str, float]) -> None:
    started = time.perf_counter()
    try:
        data = read_bytes(row)
        seconds["read"] += time.perf_counter() - started
        started = time.perf_counter()
        image = decode_image(data)
        pixels = np.ascontiguousarray(prepare(image))
        row.update(width=image.width, height=image.height, pixels=pixels.tobytes(), pixels_shape=list(pixels.shape))
    except DecodeError as error:
        row.update(reason=error.reason, message=str(error))
    except UnusableImageError as error:
        row.update(reason="unusable_image", message=str(error))
    except MemoryError:
        size = "an unknown number of" if row["size"] is None else row["size"]
        row.update(reason="out_of_memory", message=f"the worker had no memory left to decode its {size} bytes")
    seconds["decode"] += time.perf_counter() - started


def read_bytes(row: dict[str, Any]) -> bytes:
    """The encoded bytes that an index row points at, proven to be the ones that were indexed.

    Raises:
        DecodeError: `missing_file`, `not_a_file`, `read_error`, or `changed_file` when the bytes have another hash now.
    """
    path = Path(row["path"])
    try:
        with open_input(path) as stream:
            if row["offset"] is not None:
                stream.seek(row["offset"])
                data = stream.read(row["size"])
            else:
                data = stream.read()
    except InputReadError as error:
        raise DecodeError(error.reason, str(error)) from error
    if hashlib.sha256(data).hexdigest() != row["image_id"]:
        raise DecodeError("changed_file", f"{path} holds other bytes than when it was indexed")
    return data


@lru_cache(maxsize=2)
def _preparer(model: str) -> Preparer:
    checkpoint, family = open_checkpoint(model)
    return family.preparer(checkpoint)
