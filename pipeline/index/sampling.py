"""A sample of the images in the index, for measurements on the corpus's own images."""

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from pipeline.artifact.index import Index
from pipeline.corpus.fetch import Place
from schemas.columns import column, rows_of
from schemas.views import parquet_files

MAX_FILES = 64  # of the index that are looked at; each holds the images of up to 64 shards


@dataclass(slots=True, kw_only=True)
class Sampled:
    """A distinct image and where its encoded bytes lie."""

    path: str = column(pa.string())
    offset: int | None = column(pa.int64())  # None: the whole file
    size: int | None = column(pa.int64())
    within: str | None = column(pa.string())
    image_id: str = column(pa.string())

    @property
    def place(self) -> Place:
        """Where its encoded bytes lie."""
        return Place(self.path, self.offset, self.size, self.within)


def sampled_places(index: Index, count: int) -> list[Sampled]:
    """Up to `count` of the distinct images: those with the lowest sha256.

    That is a random sample which is the same every time. Of a large index evenly spread files are looked at.
    """
    parts = index.parts()
    step = max(1, -(-len(parts) // MAX_FILES))
    if not parts:
        return []
    listing = parquet_files(index.store.locate(key) for key in parts[::step])
    with duckdb.connect() as db:
        found = db.sql(
            f'select path, "offset", size, within, image_id from {listing} '
            f"where slot is not null order by image_id limit {count}"
        )
        return rows_of(Sampled, found.to_arrow_table())
