"""Shards made by hand, as the stages hand them to each other: no model, no index on disk, no Ray."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from pipeline.artifact.payload import pack_features
from pipeline.prune.rows import ENCODED, EncodedRow, EncodeFacts, ReadFacts, on_its_way, same_in_each, stage_table
from schemas.columns import table_of
from schemas.samples import IndexRow, Prompt
from schemas.selections import FeatureRow, Grid, Position, SegmentRow, SelectionRow


class MadeIndex:
    """An index of shards that are given as rows."""

    def __init__(self, *shards: Sequence[IndexRow]) -> None:
        self._shards = shards

    def read_shard(self, shard: int) -> pa.Table:
        return table_of(IndexRow, list(self._shards[shard]))


def image_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def sample(number: int, slot: int | None, image: str, *, shard: int = 0, image_shard: int = 0) -> IndexRow:
    """A sample with two prompts, of which the second is blank; images of one name have the same bytes."""
    prompts = [
        Prompt(prompt_id=f"{shard}-{number}-a", prompt="what ?", references=["x"], type="vqa", status="ok"),
        Prompt(prompt_id=f"{shard}-{number}-b", status="empty_prompt", message="is blank"),
    ]
    return IndexRow(
        input=0, sample=number, source=f"{shard}/{number}.jpg", path=f"/{number}.jpg", image_id=image_id(image),
        prompts=prompts, shard=shard, slot=slot, image_shard=image_shard,
    )  # fmt: skip


def file_sample(slot: int | None, path: Path, data: bytes) -> IndexRow:
    """A sample whose image is a file of these bytes."""
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return IndexRow(
        input=0, sample=slot or 0, source=path.name, path=str(path), image_id=digest, shard=0, slot=slot, image_shard=0
    )


def encoded(row: IndexRow, value: float = 0.0) -> EncodedRow:
    """What the model might decide about a sample's image: three tokens of four, the features all of one value."""
    assert row.image_id is not None
    payload = pack_features({"features": torch.full((3, 5), value)}, "model")
    decision = SelectionRow(
        image_id=row.image_id, source=row.source, shard=row.shard, width=8, height=6, num_tokens=4, num_kept=3,
        num_structure=0, grid=Grid(rows=2, cols=2, tiles=1),
        segments=[
            SegmentRow(
                first=0, tile=0, rows=2, cols=2, row=0, col=0, tile_rows=0, tile_cols=0, tiles_across=1, top=0, left=0
            )
        ],
        structure=[], image_grid_thw=None, ranking=[3, 0, 2], gain=[value, 0.25, 0.1], sensitivity=[1.0, 2.0, 3.0, 4.0],
        position=[Position(tile=0, row=token // 2, col=token % 2) for token in (3, 0, 2)], sensitivity_min=1.0,
        sensitivity_mean=2.5, sensitivity_max=4.0, last_gain=0.1,
    )  # fmt: skip
    features = FeatureRow(image_id=row.image_id, num_kept=3, width=5, dtype="float32", features=payload)
    return EncodedRow(reason=None, message=None, selection=decision, features=features)


def without_selection(reason: str | None = None, message: str | None = None) -> EncodedRow:
    """A sample that owns no image, or whose image failed."""
    return EncodedRow(reason=reason, message=message, selection=None, features=None)


def encoded_table(samples: list[IndexRow], rows: list[EncodedRow]) -> pa.Table:
    """A shard as the write stage gets it."""
    read = ReadFacts(read_seconds=0.5, decode_seconds=1.5)
    encode = EncodeFacts(
        device="cpu", batch_size=4, encode_began=1.7e9, encode_seconds=2.0, score_seconds=0.1, select_seconds=0.2
    )
    return stage_table(
        ENCODED,
        table_of(IndexRow, samples),
        table_of(EncodedRow, rows),
        same_in_each(read, len(samples)),
        same_in_each(encode, len(samples)),
        on_its_way(len(samples)),
    )
