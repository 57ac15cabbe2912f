"""The files of a shard: what stands in them, in which order, and that the same shard gives the same bytes."""

import hashlib
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.cluster.outcomes import Status, ended_shard
from pipeline.prune.rows import ENCODED, OUTCOME, Outcome
from pipeline.prune.write import ELSEWHERE, WriteSettings, write_shard, write_stage
from schemas.columns import rows_of
from schemas.tables import ERRORS, FEATURES, PAYLOADS, PROMPTS, SELECTIONS
from tests.prune.made import encoded, encoded_table, image_id, sample, without_selection

BOTH = ("webdataset", "parquet")
SAMPLES = [
    sample(0, 2, "late"),  # images lie in their shard in another order than their samples
    sample(1, 0, "early"),
    sample(2, None, "early"),  # repeats a sound image
    sample(3, 1, "lost"),
    sample(4, None, "lost"),  # repeats an image that failed
    sample(5, None, "elsewhere", image_shard=7),
]
ROWS = [
    encoded(SAMPLES[0], 0.5),
    encoded(SAMPLES[1], 0.75),
    without_selection(),
    without_selection("feature_overflow", "too large"),
    without_selection(),
    without_selection(),
]
KEPT = [image_id("early"), image_id("late")]


def files_of(root: Path) -> dict[str, bytes]:
    tables = ("selections", "prompts", "errors", "features", "payloads")
    return {str(path.relative_to(root)): path.read_bytes() for table in tables for path in (root / table).iterdir()}


def rows_in(root: Path, table: str) -> list[dict]:
    return pq.read_table(root / table / "part-00000000.parquet").to_pylist()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_shard(encoded_table(SAMPLES, ROWS), WriteSettings(tmp_path / "out", BOTH))
    return tmp_path / "out"


def test_the_same_shard_gives_the_same_bytes_however_its_table_is_cut(written: Path, tmp_path: Path) -> None:
    table = encoded_table(SAMPLES, ROWS)
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 3), table.slice(4)])
    assert pieces["selection"].num_chunks == 3
    for name, again in (("again", table), ("pieces", pieces)):
        write_shard(again, WriteSettings(tmp_path / name, BOTH))
        assert files_of(tmp_path / name) == files_of(written)
    assert len(files_of(written)) == 6


def test_files_have_the_tables_schemas(written: Path) -> None:
    schemas = {"selections": SELECTIONS, "prompts": PROMPTS, "errors": ERRORS, "features": FEATURES}
    for table, schema in {**schemas, "payloads": PAYLOADS}.items():
        file = pq.ParquetFile(written / table / "part-00000000.parquet")
        assert file.schema_arrow == schema
        assert file.num_row_groups == 1


def test_selections_and_features_are_of_the_images_that_were_encoded_in_slot_order(written: Path) -> None:
    selections, features = rows_in(written, "selections"), rows_in(written, "features")
    assert [row["image_id"] for row in selections] == [row["image_id"] for row in features] == KEPT
    assert [row["gain"][0] for row in selections] == [0.75, 0.5]
    assert selections[0]["position"] == [{"tile": 0, "row": r, "col": c} for r, c in ((1, 1), (0, 0), (1, 0))]
    payloads = [row.features.features for row in (ROWS[1], ROWS[0]) if row.features is not None]
    assert [row["features"] for row in features] == payloads
    with tarfile.open(written / "features" / "shard-00000000.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert list(members) == [f"{name}.{end}" for name in KEPT for end in ("features.safetensors", "json")]
    for row, payload in zip(selections, payloads, strict=True):
        assert members[f"{row['image_id']}.features.safetensors"] == payload
        left_out = ("shard", "sensitivity", "sensitivity_min", "sensitivity_mean", "sensitivity_max", "last_gain")
        expected = {name: value for name, value in row.items() if name not in left_out}
        assert json.loads(members[f"{row['image_id']}.json"]) == expected


def test_payloads_say_where_the_features_of_each_image_lie_and_what_they_are(written: Path) -> None:
    payloads, features = rows_in(written, "payloads"), rows_in(written, "features")
    tar = (written / "features" / "shard-00000000.tar").read_bytes()
    assert [row["image_id"] for row in payloads] == KEPT
    for row, held in zip(payloads, features, strict=True):
        assert tar[row["offset"] :][: row["size_bytes"]] == held["features"]
        assert row["sha256"] == hashlib.sha256(held["features"]).hexdigest()


def test_payloads_of_parquet_alone_have_no_place_in_a_tar(tmp_path: Path) -> None:
    write_shard(encoded_table(SAMPLES, ROWS), WriteSettings(tmp_path, ("parquet",)))
    assert [row["offset"] for row in rows_in(tmp_path, "payloads")] == [None, None]
    write_shard(encoded_table(SAMPLES, ROWS), WriteSettings(tmp_path / "none", ()))
    assert not (tmp_path / "none" / "payloads").exists()


def test_every_prompt_has_a_status_and_every_failed_input_one_error(written: Path) -> None:
    statuses = {row["prompt_id"]: row["status"] for row in rows_in(written, "prompts")}
    sound = {f"0-{n}-{prompt}": status for n in (0, 1, 2, 5) for prompt, status in (("a", "ok"), ("b", "empty_prompt"))}
    assert statuses == sound | {f"0-{n}-{prompt}": "feature_overflow" for n in (3, 4) for prompt in "ab"}
    assert [row["image_shard"] for row in rows_in(written, "prompts")] == [0] * 10 + [7] * 2
    errors = {(row["source"], row["prompt_id"]): (row["reason"], row["message"]) for row in rows_in(written, "errors")}
    blank = ("empty_prompt", "is blank")
    assert errors == {
        **{(f"0/{n}.jpg", f"0-{n}-b"): blank for n in (0, 1, 2, 5)},
        ("0/3.jpg", None): ("feature_overflow", "too large"),
        ("0/4.jpg", None): ("feature_overflow", "same bytes as 0/3.jpg: too large"),
    }
    assert len(rows_in(written, "errors")) == len(errors)


def test_the_commit_record_counts_what_was_written(written: Path) -> None:
    record = Artifact(written).read_commit(0)
    assert record is not None
    assert record.counts == {
        "samples": 6, "images": 3, "prompts": 12, ELSEWHERE: 1, "samples.ok": 4, "samples.feature_overflow": 2,
        "prompts.ok": 4, "prompts.empty_prompt": 4, "prompts.feature_overflow": 4,
    }  # fmt: skip
    assert {table: entry.rows for table, entry in record.files.items()} == {
        "selections": 2, "prompts": 12, "errors": 6, "features.webdataset": 2, "features.parquet": 2,
        "payloads": 2,
    }  # fmt: skip
    assert set(record.seconds) == {"read", "decode", "encode", "score", "select", "write"}
    assert (record.seconds["decode"], record.began, record.device, record.batch_size) == (1.5, 1.7e9, "cpu", 4)


def test_the_driver_learns_the_same(tmp_path: Path) -> None:
    table = write_stage(encoded_table(SAMPLES, ROWS), WriteSettings(tmp_path / "out", ("parquet",)))
    assert table.schema == OUTCOME
    (outcome,) = rows_of(Outcome, table)
    assert (outcome.status, outcome.failure, outcome.shard) == (Status.COMMITTED, None, 0)
    assert (outcome.images, outcome.kept, outcome.samples, outcome.failed_samples, outcome.errors) == (3, 2, 6, 2, 6)
    assert json.loads(outcome.reasons) == {"feature_overflow": 2}
    assert not (tmp_path / "out" / "features" / "shard-00000000.tar").exists()


def test_a_shard_without_an_image_has_its_files_all_the_same(tmp_path: Path) -> None:
    rows = [without_selection("unreadable_image", "is no image")] * 2
    write_shard(encoded_table([SAMPLES[1], SAMPLES[3]], rows), WriteSettings(tmp_path, BOTH))
    for table in ("selections", "features"):
        file = pq.ParquetFile(tmp_path / table / "part-00000000.parquet")
        assert (file.num_row_groups, file.metadata.num_rows) == (0, 0)
    with tarfile.open(tmp_path / "features" / "shard-00000000.tar") as archive:
        assert archive.getmembers() == []
    assert {row["status"] for row in rows_in(tmp_path, "prompts")} == {"unreadable_image"}


def test_a_shard_that_ended_before_is_passed_on_and_not_written(tmp_path: Path) -> None:
    ended = ended_shard(3, ENCODED, Status.GIVEN_UP, "it is lost", "read")
    (outcome,) = write_stage(ended, WriteSettings(tmp_path / "out", BOTH)).to_pylist()
    told = {name: value for name, value in outcome.items() if value is not None}
    assert told == {"shard": 3, "status": "given_up", "failure": "it is lost", "stage": "read"}
    assert not (tmp_path / "out").exists()


def test_a_table_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    table = encoded_table(SAMPLES, ROWS)
    for name in ("prompts", "selection", "features", "select_seconds"):
        with pytest.raises(KeyError, match=name):
            write_shard(table.drop_columns([name]), WriteSettings(tmp_path, BOTH))
    assert Artifact(tmp_path).committed_shards() == []
