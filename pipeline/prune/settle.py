"""Last step of a prune job: samples whose image lies in another shard take over what became of the image there.

A shard is written without a look at others, so that shards can be done in any order, alone and again. When all are
committed, the prompts and errors tables of shards that refer to others are compared with what those hold, and written
again where they differ. Nothing is encoded for it.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Index
from pipeline.cluster.stream import Stage, stream_items
from pipeline.errors import UserError
from pipeline.prune.write import ELSEWHERE, resolve_repeats, write_statuses
from schemas.columns import column, rows_of, table_of
from schemas.records import CommitRecord
from schemas.samples import IndexRow
from schemas.selections import ErrorRow

SETTLE_CPUS = 0.25


@dataclass(slots=True, kw_only=True)
class Settled:
    """What the driver learns of a shard that was settled."""

    gained: int = column(pa.int64())  # rows of its errors table
    failure: str | None = column(pa.string())  # why the output can't be written


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
        settled = Settled(**row)
        if settled.failure is not None:
            raise UserError(settled.failure)
        gained += settled.gained
    return gained


def _settle_stage(batch: pa.Table, settings: tuple[Artifact, Index]) -> pa.Table:
    (shard,) = batch["shard"].to_pylist()
    try:
        gained, failure = settle_shard(*settings, shard), None
    except UserError as error:  # bad input travels as data, Ray would bury it in tracebacks
        gained, failure = 0, str(error)
    return table_of(Settled, [Settled(gained=gained, failure=failure)])


def settle_shard(artifact: Artifact, index: Index, shard: int) -> int:
    """Settle one shard; how many rows its errors table has gained."""
    record = _commit(artifact, shard)
    rows = rows_of(IndexRow, index.read_shard(shard))
    before = _failures(artifact, record)
    elsewhere: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        if row.slot is not None:
            row.reason, row.message = before.get(row.source, (None, None))
        elif row.reason is None and row.image_shard != shard:
            assert row.image_id is not None, "a sample that did not fail has an image"
            assert row.image_shard is not None, "an image lies in a shard"
            elsewhere[row.image_shard].add(row.image_id)
    resolve_repeats(rows, [row for row in rows if row.slot is not None])
    for image_shard, wanted in elsewhere.items():
        resolve_repeats(rows, _failed_owners(artifact, index, image_shard, wanted))
    if before == {row.source: (row.reason, row.message) for row in rows if row.reason is not None}:
        return 0
    files, counts = write_statuses(artifact.store, shard, rows)
    artifact.recommit(replace(record, files={**record.files, **files}, counts=counts))
    return files["errors"].rows - record.files["errors"].rows


def _failed_owners(artifact: Artifact, index: Index, shard: int, wanted: set[str]) -> list[IndexRow]:
    """Index rows of a shard's samples that own a wanted image without a selection, with the reason."""
    record = _commit(artifact, shard)
    table = _table(artifact, record, "selections", ["image_id"])
    lost = wanted.difference(table["image_id"].to_pylist())
    if not lost:
        return []
    rows = rows_of(IndexRow, index.read_shard(shard))
    owners = [row for row in rows if row.slot is not None and row.image_id in lost]
    failures = _failures(artifact, record)
    for owner in owners:
        owner.reason, owner.message = failures[owner.source]
    return owners


def _failures(artifact: Artifact, record: CommitRecord) -> dict[str, tuple[str, str | None]]:
    """Reason and message of every sample of a shard that failed, by source."""
    errors = rows_of(ErrorRow, _table(artifact, record, "errors"))
    return {error.source: (error.reason, error.message) for error in errors if error.prompt_id is None}


def _table(artifact: Artifact, record: CommitRecord, name: str, columns: list[str] | None = None) -> pa.Table:
    with artifact.store.open(record.files[name].path) as stream:
        return pq.read_table(stream, columns=columns)


def _commit(artifact: Artifact, shard: int) -> CommitRecord:
    record = artifact.read_commit(shard)
    if record is None:
        raise RuntimeError(f"shard {shard} of {artifact.address} is not committed")
    return record
