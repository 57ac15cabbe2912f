"""One explicit Arrow schema per table. Every writer passes it, so all files of a table are identical in form.

Axes in the comments: `N` visual tokens of an image, `K` kept tokens, in pick order.
"""

import pyarrow as pa

from schemas.answers import AnswerRow
from schemas.columns import schema_of

SCHEMA_VERSION = 2

_SEGMENT = (
    *("first", "tile", "rows", "cols", "row", "col"),
    *("tile_rows", "tile_cols", "tiles_across", "top", "left"),
)
_POSITION = pa.struct([("tile", pa.int32()), ("row", pa.int32()), ("col", pa.int32())])

PROMPT_STRUCT = pa.struct(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("references", pa.list_(pa.string())),
        ("type", pa.string()),
        ("status", pa.string()),  # "ok", or why this prompt can't be answered whatever its image
        ("message", pa.string()),  # null where it is "ok"
    ]
)

# What one input sample is. `sample` is the byte offset of the sample in its input file.
#
# `source` is unique to the sample and never changes. It begins with the input file's path seen from the folder that
# holds the inputs which were indexed first. Then, of a tar: "/" and the image member (the key where there is none),
# as in `train/000.tar/000017.jpg`; "@" and the byte offset go before the "/" where the name alone may come twice (a
# key that is repeated, a member that was not read). Of a manifest: "@" and the byte offset of the line, since many
# lines may name one image, then "/" and the image as the line has it: `questions.jsonl@1234/images/17.jpg`.
_SAMPLE = pa.schema(
    [
        ("input", pa.int32()),
        ("sample", pa.int64()),
        ("source", pa.string()),
        ("path", pa.string()),  # file that holds the image's encoded bytes
        ("offset", pa.int64()),  # null: the whole file
        ("size", pa.int64()),
        ("image_id", pa.string()),  # null: the bytes could not be read
        ("reason", pa.string()),  # null unless the sample failed in the scan
        ("message", pa.string()),
        ("prompts", pa.list_(PROMPT_STRUCT)),
    ]
)

# What the scan finds: the sample, and what it has in place of prompts where it has none.
SCAN = pa.schema([*_SAMPLE, ("keys", pa.list_(pa.string()))])  # of its record; extensions of a tar's members

# The index: the sample plus the decision where each sample goes, sorted by (shard, input, sample).
INDEX = pa.schema(
    [
        ("shard", pa.int32()),
        ("slot", pa.int32()),  # place of the image in its shard; null unless this sample owns its image
        ("image_shard", pa.int32()),  # shard that holds the image; null without image
        *_SAMPLE,
    ]
)

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

ANSWERS = schema_of(AnswerRow)
