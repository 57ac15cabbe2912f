"""Stage read + decode: a shard's number in, its samples with prepared pixels out. Runs in CPU tasks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.artifact.index import Index
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.outcomes import stopped_shard
from pipeline.cluster.run_folder import StopFile
from pipeline.corpus.decode import DecodeError, decode_image
from pipeline.corpus.fetch import Fetcher, Place
from pipeline.families.base import Preparer, UnusableImageError
from pipeline.families.checkpoint import open_checkpoint
from pipeline.prune.rows import DECODED, DecodedRow, ReadFacts, on_its_way, pixels_table, same_in_each, stage_table
from schemas.columns import rows_of, table_of
from schemas.samples import IndexRow


@dataclass(frozen=True)
class ReadSettings:
    """What the read stage needs to know."""

    index: Index
    model: str
    stop_file: StopFile  # while it exists no further shard is begun
    policy: Policy = Policy()


def read_stage(batch: pa.Table, settings: ReadSettings) -> pa.Table:
    """A table of one row, `shard`, to the shard's table of `DECODED`."""
    (shard,) = batch["shard"].to_pylist()
    if settings.stop_file.is_there:
        return stopped_shard(shard, DECODED, "read")
    return _runner(settings.policy).run(shard, DECODED, lambda: read_shard(shard, settings))


@lru_cache(maxsize=1)
def _runner(policy: Policy) -> StageRunner:
    return StageRunner("read", policy)


def read_shard(shard: int, settings: ReadSettings) -> pa.Table:
    """Read and decode one shard: its table of `DECODED`.

    Pixels are there only where the sample owns its image. A sample that can't be used gets its `reason` and `message`.
    """
    return decode_samples(settings.index.read_shard(shard), settings.model)


def decode_samples(samples: pa.Table, model: str) -> pa.Table:
    """The table `DECODED` of rows of the index, their images prepared as the checkpoint asks for."""
    prepare = preparer_of(model).prepare
    seconds = {"read": 0.0, "decode": 0.0}
    rows, pixels = [], []
    with Fetcher() as fetcher:
        for sample in rows_of(IndexRow, samples):
            row = DecodedRow(
                shard=sample.shard,
                source=sample.source,
                image_id=sample.image_id,
                reason=sample.reason,
                message=sample.message,
                width=None,
                height=None,
            )
            rows.append(row)
            owns_image = sample.reason is None and sample.slot is not None
            pixels.append(_decode(sample, row, fetcher, prepare, seconds) if owns_image else None)
    facts = ReadFacts(read_seconds=seconds["read"], decode_seconds=seconds["decode"])
    return stage_table(
        DECODED,
        samples,
        table_of(DecodedRow, rows),
        pixels_table(pixels),
        same_in_each(facts, len(rows)),
        on_its_way(len(rows)),
    )


def _decode(
    sample: IndexRow,
    row: DecodedRow,
    fetcher: Fetcher,
    prepare: Callable[[Image.Image], np.ndarray],
    seconds: dict[str, float],
) -> np.ndarray | None:
    """The prepared pixels of a sample's image; where there are none, the row says why."""
    started = time.perf_counter()
    pixels = None
    try:
        assert sample.path is not None, "a sample with an image says where its bytes lie"
        assert sample.image_id is not None, "and was hashed"
        data = fetcher.read(Place(sample.path, sample.offset, sample.size, sample.within), sample.image_id)
        seconds["read"] += time.perf_counter() - started
        started = time.perf_counter()
        image = decode_image(data)
        pixels = np.ascontiguousarray(prepare(image))
        row.width, row.height = image.size
    except DecodeError as error:
        row.reason, row.message = error.reason, str(error)
    except UnusableImageError as error:
        row.reason, row.message = "unusable_image", str(error)
    except MemoryError:
        size = "an unknown number of" if sample.size is None else sample.size
        row.reason, row.message = "out_of_memory", f"the worker had no memory left to decode its {size} bytes"
    seconds["decode"] += time.perf_counter() - started
    return pixels


@lru_cache(maxsize=2)
def preparer_of(model: str) -> Preparer:
    """The preparer of a checkpoint, loaded once a process."""
    checkpoint, family = open_checkpoint(model)
    return family.preparer(checkpoint)


def prepared_bytes(model: str, width: int, height: int) -> int:
    """The bytes that the prepared pixels of an image of this size take, as the checkpoint's preparer says."""
    return preparer_of(model).prepared_bytes(width, height)
