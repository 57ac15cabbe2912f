"""Independent readers: stock libraries, without a line of our code, understand the artifact."""

import json

import duckdb
import pyarrow.dataset as ds
import pytest
import webdataset as wds
from safetensors.torch import load


def files_of(root, table):
    manifest = json.loads((root / "manifest.json").read_text())
    return [str(root / s["files"][table]["path"]) for s in manifest["shards"]]


def test_webdataset(pruned_64):
    dataset = wds.WebDataset(files_of(pruned_64, "features.webdataset"), shardshuffle=False)
    samples = list(dataset)
    assert len(samples) == 307
    for sample in samples:
        record = json.loads(sample["json"])
        features = load(sample["features.safetensors"])["features"]
        assert record["image_id"] == sample["__key__"]
        assert features.shape[0] == len(record["ranking"]) == 64


def test_pyarrow(pruned_64):
    table = ds.dataset(files_of(pruned_64, "selections"), format="parquet").to_table(columns=["image_id", "ranking"])
    assert len(table) == 307


def test_duckdb(pruned_64):
    (images, prompts, errors) = (files_of(pruned_64, t) for t in ("selections", "prompts", "errors"))
    db = duckdb.connect()
    ((orphans,),) = db.execute(
        f"select count(*) from read_parquet({prompts}) p left join read_parquet({images}) s using (image_id) "
        "where p.status = 'ok' and s.image_id is null"
    ).fetchall()
    assert orphans == 0
    assert db.execute(f"select count(*) from read_parquet({errors})").fetchall() == [(4,)]


@pytest.mark.parametrize("table", ["selections", "prompts", "errors"])
def test_datasets(pruned_64, table, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_files=files_of(pruned_64, table), split="train", cache_dir=tmp_path)
    assert len(rows) == sum(
        s["files"][table]["rows"] for s in json.loads((pruned_64 / "manifest.json").read_text())["shards"]
    )


def test_datasets_on_a_table_without_rows(prune, tmp_path, jpeg, write_tar):
    """`datasets` makes no dataset on disk of no rows, whoever wrote them; it streams them, with their columns."""
    datasets = pytest.importorskip("datasets")
    tar = write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", {"prompts": ["what ?"]})])
    prune(tmp_path / "out", corpus=(str(tar),), max_tokens="2")
    files = files_of(tmp_path / "out", "errors")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=tmp_path)
    assert list(rows) == []
    assert list(rows.features) == ["source", "prompt_id", "image_id", "reason", "message", "shard"]
