"""Reading pruned shards back: only the files that the commit records name, and which they were."""

import os

import pytest
import torch
from pipeline.loader.images import load_images, load_prompts

from pipeline.artifact.artifact import Artifact
from pipeline.budget import parse_budget
from schemas.records import RecordError

BUDGET = parse_budget("1", "--tokens")


def test_what_was_read_is_noted_with_its_hash(small_pruned, tmp_path):
    artifact = Artifact(small_pruned(tmp_path / "out", value=3.0))
    used: dict[str, str] = {}
    prompts = load_prompts(artifact, 1, used)
    images = load_images(artifact, {p["image_id"]: p["image_shard"] for p in prompts}, BUDGET, used)
    assert sorted(used) == [
        *("features/shard-00000000.tar", "features/shard-00000001.tar", "prompts/part-00000001.parquet"),
        *("selections/part-00000000.parquet", "selections/part-00000001.parquet"),
    ]
    _, hashes = artifact.committed_hashes()
    assert used.items() <= hashes.items()
    assert [image.features_KO.tolist() for image in images.values()] == [[[3.0, 3.0, 3.0]]] * 2
    assert all(torch.equal(image.indices_K, torch.tensor([3])) for image in images.values())


@pytest.mark.parametrize("table", ["prompts", "selections", "features.webdataset"])
def test_another_file_in_the_place_of_a_committed_one_is_not_read(small_pruned, tmp_path, table):
    artifact, other = (Artifact(small_pruned(tmp_path / name, value=value)) for name, value in (("a", 0.0), ("b", 1.0)))
    record, foreign = artifact.read_commit(0), other.read_commit(0)
    assert record is not None
    assert foreign is not None
    path = artifact.root / record.files[table].path
    data = bytearray((other.root / foreign.files[table].path).read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordError, match=r"differs from the sha256|bytes, its commit record says"):
        load_images(artifact, {p["image_id"]: 0 for p in load_prompts(artifact, 0)}, BUDGET)


def test_a_file_replaced_while_it_is_read_is_read_to_its_end(small_pruned, tmp_path):
    artifact = Artifact(small_pruned(tmp_path / "out"))
    record = artifact.read_commit(0)
    assert record is not None
    path = artifact.root / record.files["prompts"].path
    whole = path.read_bytes()
    with artifact.opened(record, "prompts") as stream:
        (tmp_path / "new").write_bytes(b"other bytes")
        os.replace(tmp_path / "new", path)
        assert stream.read() == whole
