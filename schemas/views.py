"""DuckDB views over an artifact's committed files: images, tokens, prompts, errors, shards, answers."""

from collections.abc import Sequence

VIEW_NAMES = ("images", "tokens", "prompts", "errors", "shards", "answers")

# One row per visual token. `pick` is its place in the ranking (0 = first pick) or null when it was not kept.
_TOKENS = """
create view tokens as
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
            from images
        )
    )
)
"""


def quoted(path: str) -> str:
    """`path` as an SQL string literal."""
    return "'" + path.replace("'", "''") + "'"


def table_view(name: str, files: Sequence[str], columns_sql: str) -> str:
    """SQL of a view over Parquet `files`, named one by one; an empty table of the same columns when there are none.

    Args:
        name: of the view.
        files: paths of committed Parquet files, all of one schema.
        columns_sql: column names and types, for the empty case.
    """
    if not files:
        return f"create table {name} ({columns_sql})"
    listing = ", ".join(quoted(path) for path in files)
    return f"create view {name} as select * from read_parquet([{listing}])"


def tokens_view() -> str:
    """SQL of the `tokens` view; needs `images`."""
    return _TOKENS
