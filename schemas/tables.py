"""One explicit Arrow schema per table. Every writer passes it, so all files of a table are identical in form.

Axes in the comments: `N` visual tokens of an image, `K` kept tokens, in pick order.
"""

import pyarrow as pa

from schemas.columns import schema_of, struct_of
from schemas.samples import IndexRow, Prompt, Sample

SCHEMA_VERSION = 2

_SEGMENT = (
    *("first", "tile", "rows", "cols", "row", "col"),
    *("tile_rows", "tile_cols", "tiles_across", "top", "left"),
)
_POSITION = pa.struct([("tile", pa.int32()), ("row", pa.int32()), ("col", pa.int32())])

PROMPT_STRUCT = struct_of(Prompt)
SCAN = schema_of(Sample)
INDEX = schema_of(IndexRow)

# selections: exactly the distinct images that decoded; everything about the decision, no features.
SELECTIONS = pa.schema(
    [
        ("image_id", pa.string()),  # lower-case hex sha256 of the encoded bytes
        ("source", pa.string()),  # the input sample that owns the image
        ("shard", pa.int32()),
        ("width", pa.int32()),  # of the decoded image, pixels
        ("height", pa.int32()),
        ("num_tokens", pa.int32()),  # N, structure tokens excluded
        ("num_kept", pa.int32()),  # K
        ("num_structure", pa.int32()),  # structure tokens (newlines), always kept, counted apart
        ("grid", pa.struct([("rows", pa.int32()), ("cols", pa.int32()), ("tiles", pa.int32())])),
        # Consecutive runs of the visual tokens, each a raster of rows x cols; together they cover all N tokens. What
        # the fields mean: pipeline/families/base.py, Segment.
        ("segments", pa.list_(pa.struct([(name, pa.int32()) for name in _SEGMENT]))),
        ("structure", pa.list_(pa.int32())),  # (S,) places of the structure tokens in the packed sequence of N + S
        ("image_grid_thw", pa.list_(pa.int32())),  # (3,) patches before merging; Qwen-VL only
        ("ranking", pa.list_(pa.int32())),  # (K,) token indices in pick order: the first k are budget k
        ("gain", pa.list_(pa.float32())),  # (K,) score at which each pick was taken
        ("sensitivity", pa.list_(pa.float32())),  # (N,); null where the projector is linear: it has none to tell
        ("position", pa.list_(_POSITION)),  # (K,) where each pick lies
        ("sensitivity_min", pa.float32()),
        ("sensitivity_mean", pa.float32()),
        ("sensitivity_max", pa.float32()),
        ("last_gain", pa.float32()),  # gain of the last pick
    ]
)

# prompts: one row per input prompt.
PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("image_id", pa.string()),  # null when the image's bytes could not be read
        ("prompt", pa.string()),
        ("references", pa.list_(pa.string())),
        ("type", pa.string()),
        ("source", pa.string()),  # the input sample the prompt came from
        ("status", pa.string()),  # "ok", or the reason it can't be answered
        ("shard", pa.int32()),
        ("image_shard", pa.int32()),  # shard whose selections and features hold the image
    ]
)

# errors: one row per failed input (a sample, or a prompt of it).
ERRORS = pa.schema(
    [
        ("source", pa.string()),
        ("prompt_id", pa.string()),  # set when only this prompt failed
        ("image_id", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("shard", pa.int32()),
    ]
)

# features/part-*.parquet: the same safetensors payload as the WebDataset member <image_id>.features.safetensors.
FEATURES = pa.schema(
    [
        ("image_id", pa.string()),
        ("num_kept", pa.int32()),  # K
        ("width", pa.int32()),  # O, of the language model
        ("dtype", pa.string()),
        ("features", pa.large_binary()),
    ]
)

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
