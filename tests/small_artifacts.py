"""Fixtures: a small artifact of two shards, answers over it, and answers to anything, written without Ray."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.payload import pack_features
from pipeline.artifact.tables import write_features, write_table
from schemas.columns import table_of
from schemas.records import CommitRecord, JobRecord
from schemas.selections import ErrorRow, FeatureRow, Grid, Position, PromptRow, SegmentRow, SelectionRow
from schemas.tables import ANSWERS, SCHEMA_VERSION

SEGMENT = SegmentRow(
    first=0, tile=0, rows=2, cols=2, row=0, col=0, tile_rows=0, tile_cols=0, tiles_across=0, top=0, left=0
)


def write_pruned_shard(artifact: Artifact, shard: int, value: float = 0.0) -> CommitRecord:
    """Three images of four tokens, two of them kept; the second prompt is about an image of shard 0."""
    images = [f"{shard:02d}{n:02d}" * 16 for n in range(3)]
    selections = [
        SelectionRow(
            image_id=image, source=f"s{shard}/{n}", shard=shard, width=8, height=8, num_tokens=4, num_kept=2,
            num_structure=0, grid=Grid(rows=2, cols=2, tiles=1), segments=[SEGMENT], structure=[],
            image_grid_thw=None, ranking=[3, 1], gain=[0.5, 0.25], sensitivity=[value, 1.0, 2.0, 3.0],
            position=[Position(tile=0, row=1, col=1)] * 2, sensitivity_min=0.0, sensitivity_mean=1.5,
            sensitivity_max=3.0, last_gain=0.25,
        )
        for n, image in enumerate(images)
    ]  # fmt: skip
    payload = pack_features({"features": torch.full((2, 3), value)}, "model")
    features = [FeatureRow(image_id=image, num_kept=2, width=3, dtype="float32", features=payload) for image in images]
    prompts = [
        PromptRow(
            prompt_id=f"p{shard}-{number}", image_id=image, prompt="what?", references=["x"], type="t", source="s",
            status="ok", shard=shard, image_shard=image_shard,
        )
        for number, (image, image_shard) in enumerate(((images[0], shard), ("0002" * 16, 0)))
    ]  # fmt: skip
    error = ErrorRow(source="s", prompt_id=None, image_id=None, reason="r", message="m", shard=shard)
    table = table_of(SelectionRow, selections)
    record = CommitRecord(
        shard,
        {
            "selections": write_table(artifact.store, "selections", shard, table),
            "prompts": write_table(artifact.store, "prompts", shard, table_of(PromptRow, prompts)),
            "errors": write_table(artifact.store, "errors", shard, table_of(ErrorRow, [error])),
            **write_features(artifact.store, shard, table, table_of(FeatureRow, features), ("webdataset",)),
        },
        {"images": 3, "samples": 4, "samples.ok": 3, "prompts": 2, "prompts.ok": 2},
    )
    artifact.commit(record)
    return record


@pytest.fixture
def small_pruned() -> Callable[..., Path]:
    """Write a finished output of a prune job."""

    def write(root: Path, shards: int = 2, value: float = 0.0) -> Path:
        artifact = Artifact(root)
        artifact.adopt_job(JobRecord("prune", SCHEMA_VERSION, {"max_tokens": "2"}, {"config": "c"}, {}))
        for shard in range(shards):
            write_pruned_shard(artifact, shard, value)
        artifact.finish({"num_shards": shards})
        return root

    return write


@pytest.fixture
def small_answers() -> Callable[..., Path]:
    """Write a finished output of an answer job over an output of `small_pruned`."""

    def write(root: Path, pruned: Path, tokens: str = "all", types: tuple[str | None, str | None] = ("t", "t")) -> Path:
        artifact, source = Artifact(root), Artifact(pruned)
        artifact.adopt_job(JobRecord("answer", SCHEMA_VERSION, {"tokens": tokens}, {"config": "c"}, {}))
        for record in source.commits():
            row = {
                "prompt_id": f"p{record.shard}-0",
                "shard": record.shard,
                "answer": "x",
                "tokens": 2,
                "type": types[record.shard],
                "correct": True,
                "metric": "exact",
                "score": 1.0,
            }
            files = {"answers": write_table(root, "answers", record.shard, pa.Table.from_pylist([row], ANSWERS))}
            sources = {entry.path: entry.sha256 for name, entry in record.files.items() if name != "errors"}
            artifact.commit(CommitRecord(record.shard, files, {"prompts": 1}, sources=sources))
        artifact.finish({"num_shards": 2})
        return root

    return write


@pytest.fixture
def as_version_1() -> Callable[[Path], None]:
    """Turn an output into one of version 0.1.0: another schema version, no sources in its commit records."""

    def turn(root: Path) -> None:
        job = json.loads((root / "_job.json").read_text())
        (root / "_job.json").write_text(json.dumps({**job, "schema_version": 1}))
        for path in (root / "_commits").iterdir():
            record = json.loads(path.read_text())
            del record["sources"]
            path.write_text(json.dumps(record))

    return turn


@pytest.fixture
def write_answers(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished output of an answer job: rows that name what matters, a list of them a shard."""

    def write(name: str, *shards: Sequence[dict], schema: pa.Schema = ANSWERS, tokens: str = "all") -> Path:
        root = tmp_path / name
        artifact = Artifact(root)
        artifact.adopt_job(JobRecord("answer", SCHEMA_VERSION, {"tokens": tokens}, {"config": "c"}, {}))
        for shard, rows in enumerate(shards):
            whole = [
                {"prompt_id": f"p{shard}-{n}", "image_id": f"{shard:032x}{n:032x}", "shard": shard, **row}
                for n, row in enumerate(rows)
            ]
            entry = write_table(root, "answers", shard, pa.Table.from_pylist(whole, schema))
            artifact.commit(CommitRecord(shard, {"answers": entry}, {"prompts": len(rows)}, sources={"s": str(shard)}))
        artifact.finish({"num_shards": len(shards)})
        return root

    return write
