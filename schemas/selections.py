"""The rows of a pruned artifact's tables. Axes: `N` visual tokens of an image, `K` kept tokens, in pick order."""

from dataclasses import dataclass

import pyarrow as pa

from schemas.columns import column, list_column, row_column
from schemas.samples import Message


@dataclass(slots=True, kw_only=True)
class Grid:
    """The raster that the tokens of a whole image form, tile by tile."""

    rows: int = column(pa.int32())
    cols: int = column(pa.int32())
    tiles: int = column(pa.int32())


@dataclass(slots=True, kw_only=True)
class SegmentRow:
    """A run of the visual tokens that is a raster of rows x cols; what the fields mean: `pipeline.families.base`."""

    first: int = column(pa.int32())
    tile: int = column(pa.int32())
    rows: int = column(pa.int32())
    cols: int = column(pa.int32())
    row: int = column(pa.int32())
    col: int = column(pa.int32())
    tile_rows: int = column(pa.int32())
    tile_cols: int = column(pa.int32())
    tiles_across: int = column(pa.int32())
    top: int = column(pa.int32())
    left: int = column(pa.int32())


@dataclass(slots=True, kw_only=True)
class Position:
    """Where a token lies in the image."""

    tile: int = column(pa.int32())
    row: int = column(pa.int32())
    col: int = column(pa.int32())


@dataclass(slots=True, kw_only=True)
class SelectionRow:
    """selections: one row per distinct image that could be encoded; everything about the decision, no features."""

    image_id: str = column(pa.string())  # lower-case hex sha256 of the encoded bytes
    source: str = column(pa.string())  # the input sample that owns the image
    shard: int = column(pa.int32())
    width: int = column(pa.int32())  # of the decoded image, pixels
    height: int = column(pa.int32())
    num_tokens: int = column(pa.int32())  # N, structure tokens excluded
    num_kept: int = column(pa.int32())  # K
    num_structure: int = column(pa.int32())  # structure tokens (newlines), always kept, counted apart
    grid: Grid = row_column(Grid)
    segments: list[SegmentRow] = list_column(SegmentRow)  # consecutive; together they cover all N tokens
    structure: list[int] = column(pa.list_(pa.int32()))  # (S,) places of the structure tokens among the N + S
    image_grid_thw: list[int] | None = column(pa.list_(pa.int32()))  # (3,) patches before merging; Qwen-VL only
    ranking: list[int] = column(pa.list_(pa.int32()))  # (K,) token indices in pick order: the first k are budget k
    gain: list[float] = column(pa.list_(pa.float32()))  # (K,) score at which each pick was taken
    sensitivity: list[float] | None = column(pa.list_(pa.float32()))  # (N,); null where the projector is linear
    position: list[Position] = list_column(Position)  # (K,) where each pick lies
    sensitivity_min: float | None = column(pa.float32())
    sensitivity_mean: float | None = column(pa.float32())
    sensitivity_max: float | None = column(pa.float32())
    last_gain: float = column(pa.float32())  # gain of the last pick


@dataclass(slots=True, kw_only=True)
class PromptRow:
    """prompts: one row per input prompt."""

    prompt_id: str = column(pa.string())
    image_id: str | None = column(pa.string())  # null when the image's bytes could not be read
    prompt: str = column(pa.string())
    messages: list[Message] | None = list_column(
        Message, default=None
    )  # the conversation it ends; null: it stands by itself
    references: list[str] = column(pa.list_(pa.string()))
    type: str | None = column(pa.string())
    source: str = column(pa.string())  # the input sample the prompt came from
    status: str = column(pa.string())  # "ok", or the reason it can't be answered
    shard: int = column(pa.int32())
    image_shard: int | None = column(pa.int32())  # shard whose selections and features hold the image


@dataclass(slots=True, kw_only=True)
class ErrorRow:
    """errors: one row per failed input, which is a sample or a prompt of one."""

    source: str = column(pa.string())
    prompt_id: str | None = column(pa.string())  # set when only this prompt failed
    image_id: str | None = column(pa.string())
    reason: str = column(pa.string())
    message: str | None = column(pa.string())
    shard: int = column(pa.int32())


@dataclass(slots=True, kw_only=True)
class PayloadRow:
    """payloads: one row per image whose features are stored, in the order in which their files hold them.

    By it the features of one image are found, read and checked without those of others.
    """

    image_id: str = column(pa.string())
    offset: int | None = column(pa.int64())  # byte of the tar at which the payload begins; null: there is no tar
    size_bytes: int = column(pa.int64())  # of the payload, in any form
    sha256: str = column(pa.string())  # of the same


@dataclass(slots=True, kw_only=True)
class FeatureRow:
    """features/part-*.parquet: the payload that is also the WebDataset member <image_id>.features.safetensors."""

    image_id: str = column(pa.string())
    num_kept: int = column(pa.int32())  # K
    width: int = column(pa.int32())  # O, of the language model
    dtype: str = column(pa.string())
    features: bytes = column(pa.large_binary())
