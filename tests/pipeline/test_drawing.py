"""A seeded sample of a scan: the images of lowest hash, with every sample that repeats them, and nothing else."""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.index.drawing import Draw, draw_images
from pipeline.storage import LocalStore
from schemas.columns import rows_of, schema_of, table_of
from schemas.samples import Prompt, Sample


def sample(number: int, image: int, *, status: str = "ok", reason: str | None = None, asked: int = 1) -> Sample:
    prompts = [Prompt(prompt_id=f"{number}#{n}", prompt="what ?", status=status) for n in range(asked)]
    return Sample(
        input=0, sample=number, source=f"s{number}", path="p", image_id=f"{image:064x}", reason=reason, prompts=prompts
    )


UNITS = [
    [sample(0, 1), sample(1, 2, asked=0), sample(2, 3, status="bad_prompt"), sample(3, 4)],
    [],
    [sample(4, 5), sample(5, 1), sample(6, 6, reason="missing_file"), sample(7, 7), sample(8, 2)],
]
POSABLE = {1, 2, 4, 5, 7}  # the second image is asked about by its repeat


def draw(root: Path, units: list[list[Sample]], count: int, seed: int = 0, limit: int | None = None) -> list[str]:
    """The sources that are left, in order."""
    store = LocalStore(root)
    keys = [f"unit-{number}.parquet" for number in range(len(units))]
    for key, some in zip(keys, units, strict=True):
        root.mkdir(exist_ok=True)
        pq.write_table(table_of(Sample, some), root / key)
    left = draw_images(store, keys, Draw(count, seed), limit)
    found = [pq.read_table(root / key, schema=schema_of(Sample)) for key in left]
    assert all(len(table) for table in found), "no empty unit is handed on"
    return [row.source for table in found for row in rows_of(Sample, table)]


def lowest(images: set[int], count: int, seed: int) -> set[int]:
    return set(sorted(images, key=lambda n: hashlib.sha256(f"{seed}:{n:064x}".encode()).hexdigest())[:count])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 3, 5, 99])
def test_the_images_of_lowest_hash_with_all_of_their_samples(tmp_path, count, seed):
    chosen = lowest(POSABLE, count, seed)
    of_image = {int(one.image_id or "", 16): [] for some in UNITS for one in some}
    for one in (one for some in UNITS for one in some if one.reason is None):
        of_image[int(one.image_id or "", 16)].append(one.source)
    expected = {source for image in chosen for source in of_image[image]}
    assert set(draw(tmp_path / "a", UNITS, count, seed)) == expected
    assert set(draw(tmp_path / "b", UNITS[::-1], count, seed)) == expected


def test_only_the_first_samples_take_part_in_a_limit(tmp_path):
    assert set(draw(tmp_path, UNITS, 99, limit=6)) == {"s0", "s3", "s4", "s5"}


def test_a_scan_without_a_prompt_that_can_be_posed_is_refused(tmp_path):
    with pytest.raises(UserError, match="--sample: no image of the corpus has a prompt that can be posed"):
        draw(tmp_path, [[sample(0, 1, status="bad_prompt")], [sample(1, 2, reason="missing_file")]], 3)
