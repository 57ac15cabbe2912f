"""The rows of the answers table."""

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

from schemas.columns import column


class FinishReason(StrEnum):
    """Why an answer ends where it does."""

    STOP = "stop"  # the model ended it
    LENGTH = "length"  # it is as long as an answer may be
    REFUSED = "refused"  # there is none: the prompt could not be posed


@dataclass(slots=True, kw_only=True)
class AnswerRow:
    """answers/part-*.parquet: a row per prompt of the status "ok" in the pruned artifact, or per prompt of a file."""

    prompt_id: str = column(pa.string())
    image_id: str | None = column(pa.string())  # null where a prompt of a file names none that is there
    answer: str | None = column(pa.string())  # null where the prompt was refused
    answer_tokens: list[int] = column(pa.list_(pa.int32()))  # generated token ids, end-of-sequence excluded
    finish_reason: FinishReason = column(pa.string())
    tokens: int = column(pa.int32())  # visual tokens the model saw (k of the ranking), structure tokens not counted
    seconds: float = column(pa.float32())  # generation time of the batch / prompts in it
    type: str | None = column(pa.string())
    references: list[str] | None = column(pa.list_(pa.string()))
    correct: bool | None = column(pa.bool_())  # whether it equals a reference; null without references
    metric: str = column(pa.string())  # what `score` is: "exact" or "object_f1"
    score: float | None = column(pa.float32())  # from 0 to 1; null without references
    shard: int = column(pa.int32())
    message: str | None = column(pa.string())  # why the prompt was refused; null otherwise
