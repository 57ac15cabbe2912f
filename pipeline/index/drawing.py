"""A seeded sample of the distinct images of a scan, whatever the order in which the corpus is named or read."""

from dataclasses import dataclass
from itertools import accumulate

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.storage import Store
from schemas.statuses import OK
from schemas.tables import SCAN
from schemas.views import quoted

_DRAWN = """
select image_id from (
    select distinct image_id from read_parquet([{files}], filename = true, file_row_number = true) s
    join units u on u.file = s.filename
    where u.begin + file_row_number < {limit} and reason is null and image_id is not null
        and len(list_filter(prompts, lambda p: p.status = '{ok}')) > 0
)
order by sha256('{seed}:' || image_id), image_id limit {count}
"""


@dataclass(frozen=True, slots=True)
class Draw:
    """Which sample: the `count` images for which sha256("<seed>:<image id>") is lowest."""

    count: int
    seed: int


def draw_images(store: Store, units: list[str], draw: Draw, limit: int | None) -> list[str]:
    """Leave in the scanned units only the samples of images that are drawn; the keys of those with any left.

    Images are drawn that a prompt which can be posed asks about. All prompts about an image stay with it, also those
    of samples that repeat its bytes.

    Args:
        store: of the artifact.
        units: keys of the scanned units, in order.
        draw: which images.
        limit: take only the first samples.

    Raises:
        UserError: there is no such image.
    """
    with store.scratch() as scratch, store.local(units) as paths, duckdb.connect() as db:
        db.execute(f"set temp_directory = {quoted(str(scratch / 'spill'))}")
        rows = [pq.read_metadata(path).num_rows for path in paths]
        begins = list(accumulate(rows, initial=0))
        last = begins[-1] if limit is None else limit
        db.register(
            "units", pa.table({"file": pa.array(paths, pa.string()), "begin": pa.array(begins[:-1], pa.int64())})
        )
        files = ", ".join(map(quoted, paths))
        drawn = db.sql(_DRAWN.format(files=files, limit=last, ok=OK, seed=draw.seed, count=draw.count)).fetchall()
        chosen = pa.array([image_id for (image_id,) in drawn], pa.string())
        if not len(chosen):
            raise UserError("--sample: no image of the corpus has a prompt that can be posed; add prompts, or --prompt")
        return [
            key
            for key, path, begin in zip(units, paths, begins, strict=False)
            if _cut(store, key, path, chosen, last - begin)
        ]


def _cut(store: Store, key: str, path: str, chosen: pa.Array, most: int) -> int:
    """Leave in one unit the samples of chosen images among its first ones; how many these are."""
    table = pq.read_table(path, schema=SCAN).slice(0, max(0, most))
    kept = table.filter(pc.and_(pc.is_in(table["image_id"], value_set=chosen), pc.is_null(table["reason"])))
    with store.new_file(key) as new:
        pq.write_table(kept, new.path)
    return len(kept)
