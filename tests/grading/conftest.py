"""Fixtures: answers written without a model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from schemas.records import CommitRecord, JobRecord
from schemas.tables import ANSWERS, SCHEMA_VERSION

Shard = Sequence[dict]


@pytest.fixture
def write_answers(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished output of an answer job: rows that name what matters, a list of them a shard."""

    def write(name: str, *shards: Shard, schema: pa.Schema = ANSWERS, tokens: str = "all") -> Path:
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
