"""The measured batch size: the smallest beyond which doubling is not worth it, with large images of the corpus."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifact.index import Generation, Index, part_key, write_part
from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.families.base import EncodedImage, Packed, Segment, UnusableImageError
from pipeline.index import sampling
from pipeline.index.sampling import sampled_places
from pipeline.prune import tune
from pipeline.prune.encode import EncodeSettings
from pipeline.prune.select import SelectSettings
from pipeline.prune.tune import LARGEST, MEASURED, find_batch_size, smallest_fast_size
from pipeline.storage import LocalStore
from schemas.columns import table_of
from schemas.samples import IndexRow
from tests.prune.made import file_sample
from zoo_ops import as_projector_spec


@pytest.mark.parametrize(
    ("seconds_of", "size"),
    [
        (lambda n: 1.0, LARGEST),  # a batch costs the same whatever its size: take the largest
        (lambda n: 1.0 * n, 1),  # no gain at all
        (lambda n: max(1.0, n / 8), 8),  # full at 8
        (lambda n: None if n > 4 else 1.0, 4),  # memory ends
        (lambda n: 0.9 * n if n == 2 else 1.0 * n, 2),
        (lambda n: 1 + 0.1 * n, 128),
    ],
)
def test_smallest_fast_size(seconds_of, size):
    assert smallest_fast_size(seconds_of) == size


PROJECTOR = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 3)).requires_grad_(False)


class ManyPixels:
    """Prepares images as they are; those of one row it can't take."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        if image.height == 1:
            raise UnusableImageError("is too flat")
        return np.asarray(image)

    def prepared_bytes(self, width: int, height: int) -> int:
        return 3 * width * height


class SmallMemory:
    """An encoder that holds so many pixels at once, and notes the batches it was given."""

    projector = as_projector_spec(PROJECTOR)

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.sizes: list[list[tuple[int, int]]] = []

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        assert [image.shape[:2] for image in pixels] == list(sizes)
        return Packed(torch.empty(0), [image.shape for image in pixels], list(sizes))

    def encode(self, packed: Packed) -> list[EncodedImage]:
        self.sizes.append(list(packed.sizes))
        if sum(height * width for height, width in packed.sizes) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        features = torch.rand(2, 3)
        return [EncodedImage(features, PROJECTOR(features), [Segment(0, 0, 1, 2)], (1, 2, 1)) for _ in packed.sizes]


def png(size: tuple[int, int], seed: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (seed % 256, seed // 256, 0)).save(stream, "PNG")
    return stream.getvalue()


def index_of(folder: Path, images: Sequence[bytes]) -> Index:
    """An index of one file and one shard, with these images."""
    store = LocalStore(folder / "out")
    rows = [file_sample(slot, folder / f"{slot}.png", data) for slot, data in enumerate(images)]
    repeat = IndexRow(input=0, sample=99, source="r", path=rows[0].path, image_id=rows[0].image_id, shard=0)
    write_part(store, part_key(0), [table_of(IndexRow, [*rows, repeat])])
    new = Generation.of_nothing("/", [], first_input=0, first_shard=0, first_file=0, shards_per_file=64)
    return Index(store, [Generation(**{**vars(new), "num_files": 1, "num_shards": 1})])


@pytest.fixture
def measured(work_here, monkeypatch):
    """The batch size that is found, and the batches it was measured with."""

    def run(index: Index, memory: int) -> tuple[int, SmallMemory]:
        encoder = SmallMemory(memory)
        monkeypatch.setattr(tune, "load_encoder", lambda settings, device: encoder)
        monkeypatch.setattr(tune, "preparer_of", lambda model: ManyPixels())
        monkeypatch.setattr(tune, "_seconds", seconds_that_do_not_grow)
        return find_batch_size(
            EncodeSettings("m", "float32", 1, "model", SelectSettings(Budget("all"))), index, 0
        ), encoder

    own = tune._seconds

    def seconds_that_do_not_grow(work, size: int) -> float | None:
        return None if own(work, size) is None else 1.0

    return run


def test_it_is_measured_with_the_largest_images_of_the_corpus_and_fits_these(measured, tmp_path):
    """Images of 10 to 400 pixels, two larger ones that can't be used, one that changed: memory for 1,500 pixels."""
    sizes = [(5, 2 + n) for n in range(40)] + [(20, 20)] * 4
    images = [png(size, seed) for seed, size in enumerate(sizes)]
    images += [b"no image", png((1000, 1), 50), png((30, 30), 51)]
    index = index_of(tmp_path, images)
    (tmp_path / f"{len(images) - 1}.png").write_bytes(png((30, 30), 52))
    size, encoder = measured(index, memory=1500)
    assert size == 2  # 4 x 400 pixels are too many
    assert [len(batch) for batch in encoder.sizes] == [1] * 4 + [2] * 4 + [4]
    assert {one for batch in encoder.sizes for one in batch} == {(20, 20)}
    size, encoder = measured(index, memory=1 << 30)
    assert size == LARGEST
    assert len(set(encoder.sizes[-1])) == MEASURED - 4 + 1


def test_a_corpus_without_an_image_to_measure_with_is_told(measured, tmp_path):
    index = index_of(tmp_path, [b"no image", png((1000, 1), 0)])
    with pytest.raises(UserError, match=r"--batch-size auto: none of the images it looked at .* give a number"):
        measured(index, memory=1)


def test_the_sample_is_the_same_every_time_and_holds_each_image_once(tmp_path, monkeypatch):
    index = index_of(tmp_path, [png((2, 2), seed) for seed in range(30)])
    ids = [place.image_id for place in sampled_places(index, 100)]
    assert len(set(ids)) == len(ids) == 30
    assert [place.image_id for place in sampled_places(index, 7)] == sorted(ids)[:7]
    assert sampled_places(Index(index.store, []), 7) == []
    listed: list[str] = []
    own = sampling.dataset_of
    many = Generation(**{**vars(index.generations[0]), "num_files": 130})
    monkeypatch.setattr(sampling, "MAX_FILES", 1)
    monkeypatch.setattr(sampling, "dataset_of", lambda store, keys, of: own(store, listed.extend(keys) or keys, of))
    assert len(sampled_places(Index(index.store, [many]), 7)) == 7
    assert len(listed) == 1
