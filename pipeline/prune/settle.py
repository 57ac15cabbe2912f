"""Last step of a prune job: samples whose image lies in another shard take over what became of the image there.

A shard is written without a look at others, so that shards can be done in any order, alone and again. When all are
committed, the prompts and errors tables of shards that refer to others are compared with what those hold, and written
again where they differ. Nothing is encoded for it.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Index
from pipeline.cluster.stream import Stage, stream_items
from pipeline.errors import UserError
from pipeline.prune.write import ELSEWHERE, resolve_repeats, write_statuses
from schemas.records import CommitRecord

SETTLE_CPUS = 0.25


def settle(artifact: Artifact, index: Index) -> int:
    """Settle all shards; every one must be committed. Needs Ray.

    Returns:
        how many rows the errors table has gained.

    Raises:
        UserError: the output can't be written.
    """
    shards = [record.shard for record in artifact.commits() if record.counts.get(ELSEWHERE)]
    if not shards:
        return 0
    gained = 0
    items = [{"shard": shard} for shard in shards]
    for row in stream_items(items, [Stage(_settle_stage, (artifact, index), SETTLE_CPUS)]):
        if row["failure"] is not None:
            raise UserError(row["failure"])
        gained += row["gained"]
    return gained


def _settle_stage(batch: pa.Table, settings: tuple[Artifact, Index]) -> pa.Table:
    (shard,) = batch["shard"].to_pylist()
    try:
        gained, failure = settle_shard(*settings, shard), None
    except UserError as error:  # bad input travels as data, Ray would bury it in tracebacks
        gained, failure = 0, str(error)
    return pa.table({"gained": pa.array([gained], pa.int64()), "failure": pa.array([failure], pa.string())})


def settle_shard(artifact: Artifact, index: Index, shard: int) -> int:
    """Settle one shard; how many rows its errors table has gained."""
    record = _commit(artifact, shard)
    rows = index.read_shard(shard).to_pylist()
    before = _failures(artifact, record)
    elsewhere: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        if row["slot"] is not None:
            row["reason"], row["message"] = before.get(row["source"], (None, None))
        if row["reason"] is None and row["slot"] is None and row["image_shard"] != shard:
            elsewhere[row["image_shard"]].add(row["image_id"])
    resolve_repeats(rows, [row for row in rows if row["slot"] is not None])
    for image_shard, wanted in elsewhere.items():
        resolve_repeats(rows, _failed_owners(artifact, index, image_shard, wanted))
    if before == {row["source"]: (row["reason"], row["message"]) for row in rows if row["reason"] is not None}:
        return 0
    files, counts = write_statuses(artifact.root, shard, rows)
    artifact.commit(replace(record, files={**record.files, **files}, counts=counts))
    return files["errors"].rows - record.files["errors"].rows


def _failed_owners(artifact: Artifact, index: Index, shard: int, wanted: set[str]) -> list[dict[str, Any]]:
    """Index rows of a shard's samples that own a wanted image without a selection, with the reason."""
    record = _commit(artifact, shard)
    table = pq.read_table(artifact.root / record.files["selections"].path, columns=["image_id"])
    lost = wanted.difference(table["image_id"].to_pylist())
    if not lost:
        return []
    owners = [r for r in index.read_shard(shard).to_pylist() if r["slot"] is not None and r["image_id"] in lost]
    failures = _failures(artifact, record)
    for owner in owners:
        owner["reason"], owner["message"] = failures[owner["source"]]
    return owners


def _failures(artifact: Artifact, record: CommitRecord) -> dict[str, tuple[str, str]]:
    """Reason and message of every sample of a shard that failed, by source."""
    errors = pq.read_table(artifact.root / record.files["errors"].path)
    failed = errors.filter(pc.is_null(errors["prompt_id"])).to_pylist()
    return {error["source"]: (error["reason"], error["message"]) for error in failed}


def _commit(artifact: Artifact, shard: int) -> CommitRecord:
    record = artifact.read_commit(shard)
    if record is None:
        raise RuntimeError(f"shard {shard} of {artifact.root} is not committed")
    return record
