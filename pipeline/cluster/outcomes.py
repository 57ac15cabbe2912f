"""How a shard ended: the columns that every stage's table has for it, and the row of a shard that ended early."""

from enum import StrEnum

import pyarrow as pa


class Status(StrEnum):
    """How a shard ended."""

    COMMITTED = "committed"
    STOPPED = "stopped"  # not begun, because the run was asked to stop
    REFUSED = "refused"  # bad input, or an output that can't be written: no retry and no other shard can escape it
    GIVEN_UP = "given_up"  # it failed as often as it may be tried; other shards go on


# Columns of a stage's table. All are null in the rows of a healthy shard that is still on its way.
ENDING = (
    ("status", pa.string()),
    ("failure", pa.string()),  # null for a shard that was committed
    ("stage", pa.string()),  # in which it was not; null for a shard that was committed
)


def ended_shard(shard: int, schema: pa.Schema, status: Status, failure: str, stage: str) -> pa.Table:
    """The one row that stands for a shard which ended without being committed.

    Args:
        shard: number.
        schema: of the stage's table, which has `shard` and `ENDING` among its columns.
        status: how the shard ended.
        failure: what the user is told; the first line is a sentence, a traceback may follow.
        stage: that ended it.
    """
    return pa.Table.from_pylist([{"shard": shard, "status": status, "failure": failure, "stage": stage}], schema)


def stopped_shard(shard: int, schema: pa.Schema, stage: str) -> pa.Table:
    """The row of a shard that was not begun, because the run was asked to stop."""
    return ended_shard(shard, schema, Status.STOPPED, "stopped before it began", stage)


def passed_on(batch: pa.Table, schema: pa.Schema) -> pa.Table | None:
    """The row of a shard that an earlier stage ended, for this stage to give as it is; None for a healthy shard.

    Args:
        batch: the earlier stage's table.
        schema: of this stage's table.
    """
    (row,) = batch.slice(0, 1).select(["shard", "status", "failure", "stage"]).to_pylist()
    if row["status"] is None:
        return None
    return ended_shard(row["shard"], schema, Status(row["status"]), row["failure"], row["stage"])
