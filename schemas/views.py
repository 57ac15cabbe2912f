"""What queries see beside the artifact's own tables: `shards`, `tokens`, samples; and paths as SQL literals."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from schemas.columns import column

STAGES = ("read", "decode", "encode", "score", "select", "write")


@dataclass(slots=True, kw_only=True)
class ShardRow:
    """One committed shard of a pruned artifact."""

    shard: int = column(pa.int32())
    images: int = column(pa.int64())
    samples: int = column(pa.int64())
    prompts: int = column(pa.int64())
    errors: int = column(pa.int64())
    size_bytes: int = column(pa.int64())  # of all its files
    features_bytes: int = column(pa.int64())  # of those with kept features; 0 where none are stored
    batch_size: int | None = column(pa.int32())  # that it was made with: less than asked for where memory ran out
    seconds: dict[str, float] = column(pa.struct([(stage, pa.float64()) for stage in STAGES]))


# One row per visual token. `pick` is its place in the ranking (0 = first pick) or null when it was not kept.
_TOKENS = """
select image_id, token,
       (seg.tile + case when seg.tile_rows = 0 then 0 else
           (y + seg.top) // seg.tile_rows * seg.tiles_across + (x + seg.left) // seg.tile_cols
       end)::integer as tile,
       (seg.row + y)::integer as row, (seg.col + x)::integer as col,
       sensitivity, (place - 1)::integer as pick, gain[place] as gain
from (
    select *, (token - seg.first) // seg.cols as y, (token - seg.first) % seg.cols as x
    from (
        select *, list_last(list_filter(segments, lambda s: s.first <= token)) as seg,
               list_position(ranking, token) as place
        from (
            select image_id, ranking, gain, segments,
                   unnest(range(num_tokens))::integer as token, unnest(sensitivity) as sensitivity
            from {images}
        )
    )
)
"""
# Which images a seed draws is decided by their content alone: not by their order, nor by the version of DuckDB.
_SAMPLED = """
create macro sampled_images(share, seed) as table
select * from images where ('0x' || md5(image_id || seed::varchar)[:8])::bigint < share * 4294967296
"""


def quoted(path: str) -> str:
    """`path` as an SQL string literal."""
    return "'" + path.replace("'", "''") + "'"


def parquet_files(addresses: Iterable[str]) -> str:
    """Parquet files of one form, as what stands behind SQL's `from`."""
    return f"read_parquet([{', '.join(quoted(address) for address in addresses)}])"


def tokens_view() -> str:
    """SQL of the `tokens` view; needs `images`."""
    return f"create view tokens as {_TOKENS.format(images='images')}"


def sampling_macros() -> Iterator[str]:
    """SQL of `sampled_images(share, seed)`, a share of all images that the seed draws, and of `sampled_tokens` of them.

    A condition on `image_id` does as well, but DuckDB then makes every token of every image before it looks at it.
    Needs `images`.
    """
    yield _SAMPLED
    tokens = _TOKENS.format(images="sampled_images(share, seed)")
    yield f"create macro sampled_tokens(share, seed) as table {tokens}"
