"""The rows of the trials table: what a sample of a corpus was answered with at every budget."""

from dataclasses import dataclass

import pyarrow as pa

from schemas.answers import FinishReason
from schemas.columns import column


@dataclass(slots=True, kw_only=True)
class TrialRow:
    """trials/part-*.parquet: one row per prompt, selector, seed and budget, and one with all tokens."""

    prompt_id: str = column(pa.string())
    image_id: str = column(pa.string())
    type: str | None = column(pa.string())
    selector: str | None = column(pa.string())  # null: all tokens
    seed: int = column(pa.int32())  # of `random`
    budget: str = column(pa.string())  # as it was asked for; "all" for all tokens
    tokens: int = column(pa.int32())  # visual tokens the model saw
    num_tokens: int = column(pa.int32())  # that the image has
    answer: str | None = column(pa.string())  # null where the prompt was refused
    finish_reason: FinishReason = column(pa.string())
    metric: str = column(pa.string())  # what `score` is; "agreement" with the answer at all tokens without references
    score: float | None = column(pa.float32())  # from 0 to 1; null where the prompt was refused
    shard: int = column(pa.int32())
