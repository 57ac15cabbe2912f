"""Reading a shard: the pixels of the images it owns, and a reason for each that can't be used."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.cluster.outcomes import Status
from pipeline.cluster.run_folder import StopFile
from pipeline.corpus.decode import decode_image
from pipeline.families.base import UnusableImageError
from pipeline.families.checkpoint import open_checkpoint
from pipeline.prune import read
from pipeline.prune.read import ReadSettings, read_shard, read_stage
from pipeline.prune.rows import DECODED, DecodedRow, ReadFacts, facts_among, pixels_of, rows_among
from pipeline.storage import LocalStore
from schemas.samples import IndexRow, Prompt
from tests.prune.made import MadeIndex, file_sample


@pytest.fixture
def decoded(tmp_path: Path, tiny_llava: str) -> Callable[[list[IndexRow]], pa.Table]:
    """What the stage gives for a shard of these samples."""

    def run(samples: list[IndexRow]) -> pa.Table:
        stop_file = StopFile(LocalStore(tmp_path), "_stop")
        return read_shard(0, ReadSettings(MadeIndex(samples), tiny_llava, stop_file))  # type: ignore[arg-type]

    return run


def png(size: tuple[int, int], seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def test_pixels_are_those_of_the_models_preparer(decoded, tiny_llava, tmp_path):
    checkpoint, family = open_checkpoint(tiny_llava)
    preparer = family.preparer(checkpoint)
    images = [png(size, seed) for seed, size in enumerate(((64, 48), (30, 90), (128, 128)))]
    samples = [file_sample(slot, tmp_path / f"{slot}.png", data) for slot, data in enumerate(images)]
    table = decoded(samples)
    assert table.schema == DECODED
    rows = rows_among(DecodedRow, table)
    assert [(row.width, row.height) for row in rows] == [(64, 48), (30, 90), (128, 128)]
    assert [(row.source, row.image_id, row.reason, row.message) for row in rows] == [
        (sample.source, sample.image_id, None, None) for sample in samples
    ]
    for pixels, data in zip(pixels_of(table), images, strict=True):
        assert np.array_equal(pixels, preparer.prepare(decode_image(data)))
    facts = facts_among(ReadFacts, table)
    assert facts.read_seconds > 0
    assert facts.decode_seconds > 0


def test_what_is_not_read_is_as_the_index_has_it(decoded, tmp_path):
    owner = file_sample(0, tmp_path / "a.png", png((40, 40)))
    owner.prompts = [Prompt(prompt_id=f"é{n}", prompt="what ?", references=["x"], status="ok") for n in range(3)]
    gone = str(tmp_path / "gone.png")
    repeat = IndexRow(input=0, sample=1, source="b", path=gone, image_id=owner.image_id, shard=0, image_shard=0)
    failed = IndexRow(input=0, sample=2, source="c", path=gone, reason="no_image", message="has none", shard=0)
    samples = [owner, repeat, failed]
    table = decoded(samples)
    expected = MadeIndex(samples).read_shard(0)
    assert table.select(expected.schema.names).equals(expected)
    assert [pixels is None for pixels in pixels_of(table)] == [False, True, True]
    assert [row.width for row in rows_among(DecodedRow, table)] == [40, None, None]


def test_each_image_that_cannot_be_used_has_its_reason_and_spoils_no_other(decoded, tmp_path, monkeypatch):
    names = ("sound", "missing", "changed", "cut", "empty", "folder", "refused", "large")
    images = {name: png((32, 32), seed) for seed, name in enumerate(names)}
    images |= {"cut": images["cut"][:900], "empty": b""}
    samples = [file_sample(slot, tmp_path / name, data) for slot, (name, data) in enumerate(images.items())]
    (tmp_path / "missing").unlink()
    (tmp_path / "changed").write_bytes(png((32, 32), 99))
    (tmp_path / "folder").unlink()
    (tmp_path / "folder").mkdir()

    def decode(data: bytes) -> Image.Image:
        if data == images["large"]:
            raise MemoryError
        image = decode_image(data)
        if data == images["refused"]:
            image.info["refuse"] = True
        return image

    class Refusing:
        def __init__(self, model: str) -> None:
            checkpoint, family = open_checkpoint(model)
            self._preparer = family.preparer(checkpoint)

        def prepare(self, image: Image.Image) -> np.ndarray:
            if "refuse" in image.info:
                raise UnusableImageError("is too thin")
            return self._preparer.prepare(image)

    monkeypatch.setattr(read, "decode_image", decode)
    monkeypatch.setattr(read, "preparer_of", Refusing)
    table = decoded(samples)
    rows = {row.source: row for row in rows_among(DecodedRow, table)}
    assert {name: row.reason for name, row in rows.items()} == {
        "sound": None,
        "missing": "missing_file",
        "changed": "changed_file",
        "cut": "unreadable_image",
        "empty": "empty_file",
        "folder": "not_a_file",
        "refused": "unusable_image",
        "large": "out_of_memory",
    }
    assert rows["refused"].message == "is too thin"
    for (name, row), pixels in zip(rows.items(), pixels_of(table), strict=True):
        if name == "sound":
            assert (row.width, row.height, row.message) == (32, 32, None)
            assert np.array_equal(pixels, pixels_of(decoded(samples[:1]))[0])
        else:
            assert (row.width, row.height, pixels) == (None, None, None)
            assert row.message


def test_the_member_of_a_tar_is_read_where_it_lies(decoded, tmp_path):
    data = png((20, 30))
    sample = file_sample(0, tmp_path / "a.tar", data)
    (tmp_path / "a.tar").write_bytes(b"before" + data + b"behind")
    sample.offset, sample.size = 6, len(data)
    (row,) = rows_among(DecodedRow, decoded([sample]))
    assert (row.reason, row.width, row.height) == (None, 20, 30)


def test_no_shard_begins_once_the_run_is_to_stop(tiny_llava, tmp_path):
    stop_file = StopFile(LocalStore(tmp_path), "_stop")
    stop_file.write()
    settings = ReadSettings(MadeIndex(), tiny_llava, stop_file)  # type: ignore[arg-type]
    (row,) = read_stage(pa.table({"shard": pa.array([4], pa.int32())}), settings).to_pylist()
    assert (row["shard"], row["status"], row["stage"]) == (4, Status.STOPPED, "read")
