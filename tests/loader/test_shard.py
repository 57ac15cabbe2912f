"""Reading pruned shards back: only the files that the commit records name, and which they were."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.answer.checks import survey
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.payload import pack_features
from pipeline.budget import parse_budget
from pipeline.loader.shard import ShardLoader, kept_image
from schemas.records import RecordError
from schemas.stored import StoredSelection

BUDGET = parse_budget("1", "--tokens")


def test_what_was_read_is_noted_with_its_hash(small_pruned, tmp_path):
    artifact = Artifact(small_pruned(tmp_path / "out", value=3.0))
    loaded = ShardLoader(artifact).load(1, BUDGET)
    images = loaded.images
    assert sorted(loaded.sources) == [
        *("features/shard-00000000.tar", "features/shard-00000001.tar"),
        *("payloads/part-00000000.parquet", "payloads/part-00000001.parquet", "prompts/part-00000001.parquet"),
        *("selections/part-00000000.parquet", "selections/part-00000001.parquet"),
    ]
    hashes = survey(artifact).hashes
    assert loaded.sources.items() <= hashes.items()
    assert [image.features_KO.tolist() for image in images.values()] == [[[3.0, 3.0, 3.0]]] * 2
    assert all(torch.equal(image.indices_K, torch.tensor([3])) for image in images.values())


@pytest.mark.parametrize("table", ["prompts", "selections", "features.webdataset", "payloads"])
def test_another_file_in_the_place_of_a_committed_one_is_not_read(small_pruned, tmp_path, table):
    artifact, other = (Artifact(small_pruned(tmp_path / name, value=value)) for name, value in (("a", 0.0), ("b", 1.0)))
    record, foreign = artifact.read_commit(0), other.read_commit(0)
    assert record is not None
    assert foreign is not None
    path = Path(artifact.address) / record.files[table].path
    data = bytearray((Path(other.address) / foreign.files[table].path).read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordError, match=r"differs from the sha256|bytes, its commit record says"):
        ShardLoader(artifact).load(0, BUDGET)


def test_bytes_that_rotted_under_an_unchanged_time_are_not_answered_from(small_pruned, tmp_path):
    artifact = Artifact(small_pruned(tmp_path / "out"))
    record = artifact.read_commit(0)
    assert record is not None
    path = Path(artifact.address) / record.files["features.webdataset"].path
    status, data = path.stat(), bytearray(path.read_bytes())
    data[600] ^= 1  # of the payload, which begins behind the header of its member
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RecordError, match=r"features of image 0000.* in features/shard-00000000.tar differ from their"):
        ShardLoader(artifact).load(0, BUDGET)


def test_a_ranking_that_rotted_under_an_unchanged_time_is_not_answered_from(small_pruned, tmp_path):
    """Each byte of the column is in a page that has a checksum."""
    artifact = Artifact(small_pruned(tmp_path / "out"))
    record = artifact.read_commit(0)
    assert record is not None
    path = Path(artifact.address) / record.files["selections"].path
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    (ranking,) = [one for one in columns if one.path_in_schema.startswith("ranking")]
    status, data = path.stat(), bytearray(path.read_bytes())
    data[ranking.data_page_offset + ranking.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RecordError, match=r"selections/part-00000000.parquet can't be read \(.*; it was altered"):
        ShardLoader(artifact).load(0, BUDGET)


def test_a_file_replaced_while_it_is_read_is_read_to_its_end(small_pruned, tmp_path):
    artifact = Artifact(small_pruned(tmp_path / "out"))
    record = artifact.read_commit(0)
    assert record is not None
    path = Path(artifact.address) / record.files["prompts"].path
    whole = path.read_bytes()
    with artifact.opened(record, "prompts") as stream:
        (tmp_path / "new").write_bytes(b"other bytes")
        os.replace(tmp_path / "new", path)
        assert stream.read() == whole


def test_each_record_and_file_is_opened_once(small_pruned, tmp_path, monkeypatch):
    """Shard 1 has a prompt about an image of its own and one about an image of shard 0."""
    artifact = Artifact(small_pruned(tmp_path / "out"))
    loader = ShardLoader(artifact)
    calls: list[tuple[object, ...]] = []
    read_job, read_commit, opened = Artifact.read_job, Artifact.read_commit, Artifact.opened

    def note_job(self):
        calls.append(("job",))
        return read_job(self)

    def note_commit(self, shard):
        calls.append(("commit", shard))
        return read_commit(self, shard)

    def note_opened(self, record, table, used, **how):
        calls.append((table, record.shard))
        return opened(self, record, table, used, **how)

    monkeypatch.setattr(Artifact, "read_job", note_job)
    monkeypatch.setattr(Artifact, "read_commit", note_commit)
    monkeypatch.setattr(Artifact, "opened", note_opened)
    loader.load(1, BUDGET)
    assert sorted(calls) == [
        *[("commit", 0), ("commit", 1), ("features.webdataset", 0), ("features.webdataset", 1)],
        *[("payloads", 0), ("payloads", 1), ("prompts", 1), ("selections", 0), ("selections", 1)],
    ]


def replace_rows(artifact: Artifact, shard: int, table: str, change) -> None:
    """Commit a shard anew with other rows in one of its tables."""
    record = artifact.read_commit(shard)
    assert record is not None
    path = Path(artifact.address) / record.files[table].path
    old = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(old.to_pylist()), old.schema), path)
    status = path.stat()
    entry = replace(
        record.files[table],
        size_bytes=status.st_size,
        tag=str(status.st_mtime_ns),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    artifact.commit(replace(record, files={**record.files, table: entry}))


def test_prompts_that_cannot_be_posed_are_left_out(small_pruned, tmp_path):
    artifact = Artifact(small_pruned(tmp_path / "out"))
    replace_rows(
        artifact, 0, "prompts", lambda rows: [{**rows[0], "status": "missing_file", "image_id": None}, rows[1]]
    )
    loaded = ShardLoader(artifact).load(0, BUDGET)
    assert [prompt.prompt_id for prompt in loaded.prompts] == ["p0-1"]
    assert list(loaded.images) == ["0002" * 16]


def test_an_image_without_selection_is_not_there(small_pruned, tmp_path):
    artifact = Artifact(small_pruned(tmp_path / "out"))
    replace_rows(artifact, 0, "selections", lambda rows: rows[:1])
    loaded = ShardLoader(artifact).load(1, BUDGET)
    assert [prompt.image_id for prompt in loaded.prompts] == ["0100" * 16, "0002" * 16]
    assert list(loaded.images) == ["0100" * 16]


def test_selected_images_without_features_are_an_error(small_pruned, tmp_path):
    artifact = Artifact(small_pruned(tmp_path / "out"))
    replace_rows(artifact, 0, "selections", lambda rows: [*rows, {**rows[0], "image_id": "ff" * 32}])
    replace_rows(artifact, 0, "prompts", lambda rows: [{**rows[0], "image_id": "ff" * 32}])
    with pytest.raises(RuntimeError, match=rf"features of image {'ff' * 32} are not in shard 0"):
        ShardLoader(artifact).load(0, BUDGET)


def test_a_shard_that_is_not_committed(small_pruned, tmp_path):
    with pytest.raises(RuntimeError, match=r"shard 7 of .* is not committed"):
        ShardLoader(Artifact(small_pruned(tmp_path / "out"))).load(7, BUDGET)


def selection(num_kept: int) -> StoredSelection:
    ranking = [5, 0, 7, 2][:num_kept]
    return StoredSelection(
        image_id="i", num_tokens=8, num_kept=num_kept, num_structure=0, grid={}, segments=[], structure=[],
        ranking=ranking, gain=[1.0] * num_kept,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "indices"), [("3", [0, 5, 7]), ("0.25", [0, 5]), ("all", [0, 2, 5, 7]), ("7", [0, 2, 5, 7])]
)
def test_a_kept_image_is_the_beginning_of_its_ranking_in_raster_order(budget, indices):
    features = torch.tensor([[5.0], [0.0], [7.0], [2.0]])
    payload = pack_features({"features": features, "deepstack.0": features + 10}, "model")
    image = kept_image(selection(4), payload, parse_budget(budget, "--tokens"))
    assert image.indices_K.tolist() == indices
    assert image.features_KO.flatten().tolist() == indices
    assert image.extras_KO["deepstack.0"].flatten().tolist() == [10 + index for index in indices]
