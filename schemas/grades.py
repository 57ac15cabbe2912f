"""The rows of the grades table."""

from dataclasses import dataclass

import pyarrow as pa

from schemas.columns import column


@dataclass(slots=True, kw_only=True)
class GradeRow:
    """grades/part-*.parquet: one row per answer of the artifact that was graded, in its order."""

    prompt_id: str = column(pa.string())
    image_id: str | None = column(pa.string())  # as the answer has it
    type: str | None = column(pa.string())
    metric: str = column(pa.string())  # what `score` is
    score: float | None = column(pa.float64())  # from 0 to 1, `cider_d` to 10; null where there is nothing to score
    counts: list[int] | None = column(pa.list_(pa.int32()))  # what the metric's other measures add up, see its file
    correct: bool | None = column(pa.bool_())  # whether the answer equals what it was compared with
    shard: int = column(pa.int32())
