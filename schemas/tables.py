"""One explicit Arrow schema per table. Every writer passes it, so all files of a table are identical in form."""

import pyarrow as pa

from schemas.columns import schema_of, struct_of
from schemas.samples import IndexRow, Prompt, Sample
from schemas.selections import ErrorRow, FeatureRow, PromptRow, SelectionRow

SCHEMA_VERSION = 2

PROMPT_STRUCT = struct_of(Prompt)
SCAN = schema_of(Sample)
INDEX = schema_of(IndexRow)

SELECTIONS = schema_of(SelectionRow)
PROMPTS = schema_of(PromptRow)
ERRORS = schema_of(ErrorRow)
FEATURES = schema_of(FeatureRow)

# answers/part-*.parquet: one row per prompt that could be answered.
ANSWERS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("image_id", pa.string()),
        ("answer", pa.string()),
        ("answer_tokens", pa.list_(pa.int32())),  # generated token ids, end-of-sequence excluded
        ("finish_reason", pa.string()),  # "stop" (end of sequence), "length", or "refused" with a null answer
        ("tokens", pa.int32()),  # visual tokens the model saw (k of the ranking), structure tokens not counted
        ("seconds", pa.float32()),  # generation time of the batch / prompts in it
        ("type", pa.string()),
        ("references", pa.list_(pa.string())),
        ("correct", pa.bool_()),  # null without references
        ("shard", pa.int32()),
        ("message", pa.string()),  # why the prompt was refused; null otherwise
    ]
)
