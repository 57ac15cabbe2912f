"""A sample takes over what became of its image in another shard; nothing else of its shard changes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.prune.rows import EncodedRow
from pipeline.prune.settle import settle_shard
from pipeline.prune.write import WriteSettings, write_shard
from tests.prune.made import MadeIndex, encoded, encoded_table, sample, without_selection

OWNER = sample(0, 0, "shared")
OWN, REPEAT = sample(0, 0, "own", shard=1, image_shard=1), sample(1, None, "shared", shard=1)
LOST = without_selection("feature_overflow", "too large")


@pytest.fixture
def index() -> MadeIndex:
    return MadeIndex([OWNER], [OWN, REPEAT])


def write(root: Path, owner: EncodedRow, *, both: bool = True) -> Artifact:
    settings = WriteSettings(root, ("webdataset", "parquet"))
    write_shard(encoded_table([OWNER], [owner]), settings)
    if both:
        write_shard(encoded_table([OWN, REPEAT], [encoded(OWN), without_selection()]), settings)
    return Artifact(root)


def statuses(root: Path) -> list[str]:
    return pq.read_table(root / "prompts" / "part-00000001.parquet")["status"].to_pylist()


def kept_files(root: Path) -> dict[Path, tuple[int, bytes]]:
    paths = [root / "selections" / "part-00000001.parquet", *(root / "features").glob("*-00000001.*")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_a_repeat_follows_its_owner_there_and_back(index: MadeIndex, tmp_path: Path) -> None:
    artifact = write(tmp_path, LOST)
    before = kept_files(tmp_path)
    assert statuses(tmp_path) == ["ok", "empty_prompt"] * 2
    assert settle_shard(artifact, index, 1) == 0  # its blank prompt no longer counts, the sample does
    assert statuses(tmp_path) == ["ok", "empty_prompt", "feature_overflow", "feature_overflow"]
    errors = pq.read_table(tmp_path / "errors" / "part-00000001.parquet").to_pylist()
    assert [(row["source"], row["prompt_id"], row["message"]) for row in errors] == [
        ("1/0.jpg", "1-0-b", "is blank"),
        ("1/1.jpg", None, "same bytes as 0/0.jpg: too large"),
    ]
    record = artifact.read_commit(1)
    assert record is not None
    assert record.counts["samples.feature_overflow"] == 1
    assert artifact.problem_of(record, deep=True) is None

    write(tmp_path, encoded(OWNER), both=False)
    settle_shard(artifact, index, 1)
    assert statuses(tmp_path) == ["ok", "empty_prompt"] * 2
    assert kept_files(tmp_path) == before


def test_a_shard_that_is_settled_is_not_written_again(index: MadeIndex, tmp_path: Path) -> None:
    for owner in (encoded(OWNER), LOST):
        artifact = write(tmp_path, owner)
        settle_shard(artifact, index, 1)
        before = artifact.read_commit(1)
        assert settle_shard(artifact, index, 1) == 0
        assert artifact.read_commit(1) == before


def test_errors_that_a_shard_gains_are_counted(index: MadeIndex, tmp_path: Path) -> None:
    artifact = write(tmp_path, LOST)
    sound = sample(1, None, "shared", shard=1)
    sound.prompts = sound.prompts[:1]
    other = MadeIndex([OWNER], [OWN, sound])
    write_shard(encoded_table([OWN, sound], [encoded(OWN), without_selection()]), WriteSettings(tmp_path, ("parquet",)))
    assert settle_shard(artifact, other, 1) == 1


def test_a_failure_of_its_own_is_kept(tmp_path: Path) -> None:
    """The owner in this shard failed when it was encoded, which the index does not know."""
    index = MadeIndex([OWNER], [OWN, REPEAT])
    artifact = write(tmp_path, LOST)
    rows = [without_selection("non_finite_features", "gave NaN"), without_selection()]
    write_shard(encoded_table([OWN, REPEAT], rows), WriteSettings(tmp_path, ("parquet",)))
    settle_shard(artifact, index, 1)
    assert statuses(tmp_path) == ["non_finite_features"] * 2 + ["feature_overflow"] * 2
