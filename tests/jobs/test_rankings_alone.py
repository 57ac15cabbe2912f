"""`--features none`: the rankings of a corpus for those who can't store its features, and nothing that needs them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import prune_corpus as job
from jobs import query_selections
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.loader.shard import ShardLoader
from pipeline.prune.job import PruneSettings

TABLES = ("selections", "prompts", "errors")


def rows_of(root: Path, table: str) -> list[dict]:
    manifest = json.loads((root / "manifest.json").read_text())
    return [row for s in manifest["shards"] for row in pq.read_table(root / s["files"][table]["path"]).to_pylist()]


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for table in TABLES for path in (root / table).iterdir()}


@pytest.fixture(scope="module")
def rankings(prune, made_once) -> Path:
    """The bundled corpus at 64 tokens, without features."""
    return made_once("rankings-alone", lambda output: prune(output, max_tokens="64", features="none"))


def test_tables_are_those_of_a_run_with_features_and_there_are_no_others(rankings, pruned_64):
    assert bytes_of(rankings) == bytes_of(pruned_64)
    assert not (rankings / "features").exists()
    manifest = json.loads((rankings / "manifest.json").read_text())
    assert {name for shard in manifest["shards"] for name in shard["files"]} == set(TABLES)
    assert json.loads((rankings / "_job.json").read_text())["settings"]["features"] == "none"


def test_answering_is_refused_with_what_to_do_and_writes_nothing(rankings, tiny_llava, tmp_path):
    settings = AnswerSettings(pruned=str(rankings), model=tiny_llava, output=str(tmp_path / "answers"))
    with pytest.raises(UserError, match=r"--features none: it holds rankings alone.*--features webdataset") as caught:
        answer_corpus(settings, lambda _: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "answers").exists()
    with pytest.raises(UserError, match="holds rankings alone"):
        ShardLoader(Artifact(rankings))


def test_it_is_queried(rankings, capsys):
    sql = "select count(*) as n, sum(len(ranking)) as kept from images"
    assert query_selections.main(["--pruned", str(rankings), "--format", "json", sql]) == 0
    kept = [row["num_kept"] for row in rows_of(rankings, "selections")]
    assert json.loads(capsys.readouterr().out) == {"n": len(kept), "kept": str(sum(kept))}  # DuckDB's sum is a HUGEINT
    assert query_selections.main(["--pruned", str(rankings)]) == 0


def test_it_resumes_is_verified_and_grows(prune, jpeg, write_tar, tmp_path):
    first = write_tar(tmp_path / "1.tar", [(f"{n}.jpg", jpeg(n)) for n in range(5)])
    second = write_tar(tmp_path / "2.tar", [(f"{n}.jpg", jpeg(n)) for n in range(3, 8)])
    output, whole = tmp_path / "out", tmp_path / "whole"
    settings = {"features": "none", "max_tokens": "4", "shard_size": 2}
    prune(output, corpus=(str(first),), **settings)
    part = output / "selections" / "part-00000001.parquet"
    expected = part.read_bytes()
    part.write_bytes(bytes(len(expected)))
    said = prune(output, corpus=(str(first),), verify=True, **settings)
    assert any("shard 00000001 is done again" in line for line in said)
    assert part.read_bytes() == expected
    prune(output, corpus=(str(first), str(second)), **settings)
    assert len(rows_of(output, "selections")) == 8
    prune(whole, corpus=(str(first), str(second)), **settings)
    assert {row["image_id"]: row["ranking"] for row in rows_of(whole, "selections")} == {
        row["image_id"]: row["ranking"] for row in rows_of(output, "selections")
    }


def test_a_folder_with_features_is_not_resumed_without_them(prune, jpeg, write_tar, tmp_path):
    corpus = (str(write_tar(tmp_path / "1.tar", [("1.jpg", jpeg(1))])),)
    prune(tmp_path / "out", corpus=corpus, max_tokens="4")
    with pytest.raises(UserError, match="features: 'webdataset' -> 'none'"):
        prune(tmp_path / "out", corpus=corpus, max_tokens="4", features="none")


def test_a_dtype_of_features_that_are_not_stored_is_refused(tmp_path):
    arguments = ["--corpus", "x.tar", "--model", "m", "--output", str(tmp_path / "out"), "--features", "none"]
    with pytest.raises(UserError, match="--feature-dtype int8: --features none stores no features"):
        job.main([*arguments, "--feature-dtype", "int8"])
    assert PruneSettings(corpus=("x.tar",), model="m", output="out", features="none").feature_dtype == "model"
