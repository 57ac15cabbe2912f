"""The dataset card: what other tools read by it, what it says, and that it says the same again."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.report.card import card_of, write_card
from schemas.tables import SELECTIONS


def rows_of(root: Path, table: str) -> list[dict]:
    manifest = json.loads((root / "manifest.json").read_text())
    return [row for s in manifest["shards"] for row in pq.read_table(root / s["files"][table]["path"]).to_pylist()]


def head_of(root: Path) -> dict:
    return yaml.safe_load((root / "README.md").read_text().split("---\n")[1])


def silent(_: str) -> None:
    return


FEW = {"max_tokens": "8", "limit": 40, "shard_size": 16, "features": "both"}


@pytest.fixture(scope="module")
def few(prune, tmp_path_factory) -> Path:
    """The beginning of the bundled corpus, with a bad image or two."""
    output = tmp_path_factory.mktemp("few") / "out"
    prune(output, **FEW)
    return output


@pytest.mark.parametrize("table", ["selections", "prompts", "errors", "features"])
def test_datasets_pandas_and_polars_read_the_tables(table, few, tmp_path):
    loaded = load_dataset(str(few), table, split="train", cache_dir=str(tmp_path))
    expected = rows_of(few, "features.parquet" if table == "features" else table)
    key = {"prompts": "prompt_id", "errors": "source"}.get(table, "image_id")
    assert loaded[key] == [row[key] for row in expected]
    files = sorted((few / table).glob("part-*.parquet"))
    frame = pd.concat(map(pd.read_parquet, files))
    scanned = pl.scan_parquet(files).collect()
    assert list(frame[key]) == scanned[key].to_list() == [row[key] for row in expected]
    if table == "selections":
        rankings = [row["ranking"] for row in expected]
        assert loaded["ranking"] == scanned["ranking"].to_list() == [list(row) for row in frame["ranking"]] == rankings


def test_a_table_without_rows_is_left_out_as_datasets_refuses_it(small_pruned, tmp_path):
    """A corpus without a single error: its errors table is there all the same, and empty."""
    output = small_pruned(tmp_path / "out")
    artifact = Artifact(output)
    empty = pq.read_schema(output / "errors" / "part-00000000.parquet").empty_table()
    for shard in (0, 1):
        entry = write_table(output, "errors", shard, empty)
        record = artifact.read_commit(shard)
        assert record is not None
        artifact.commit(replace(record, files={**record.files, "errors": entry}))
    write_card(artifact, silent)
    assert [one["config_name"] for one in head_of(output)["configs"]] == ["selections", "prompts"]
    assert "| `errors/` | 0 | 2 |" in (output / "README.md").read_text()
    loaded = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))  # selections, the default
    assert loaded.num_rows == 6
    assert len(pd.read_parquet(output / "errors")) == 0


def test_answers_have_a_card_and_it_is_the_same_again(few, tiny_llava, work_here, tmp_path):
    cards = []
    for name in ("one", "two"):
        settings = AnswerSettings(
            pruned=str(few), model=tiny_llava, output=str(tmp_path / name), tokens="4", max_new_tokens=1
        )
        answer_corpus(settings, silent)
        cards.append((tmp_path / name / "README.md").read_bytes())
    assert cards[0] == cards[1]
    loaded = load_dataset(str(tmp_path / "one"), "answers", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["prompt_id"] == [row["prompt_id"] for row in rows_of(tmp_path / "one", "answers")]
    assert "| pruned.max_tokens | 8 |" in cards[0].decode()
    assert not [told for told in (str(tmp_path), str(few), tiny_llava) if told in cards[0].decode()]


def test_the_same_command_gives_the_same_card_wherever_it_lies(few, prune, tmp_path):
    card = (few / "README.md").read_text()
    prune(tmp_path / "again", **FEW)
    assert (tmp_path / "again" / "README.md").read_text() == card
    record = json.loads((few / "_job.json").read_text())
    places = (str(few), os.getcwd(), *(record["environment"][name] for name in ("platform", "model")))
    assert not [told for told in places if told in card]
    assert not re.search(r"20\d\d-\d\d-\d\d", card)


def test_it_says_what_the_records_say(few):
    card = (few / "README.md").read_text()
    record = json.loads((few / "_job.json").read_text())
    manifest = json.loads((few / "manifest.json").read_text())
    for name, value in record["settings"].items():
        assert f"| {name} | {value if isinstance(value, str) else json.dumps(value)} |" in card
    for name, number in manifest["counts"].items():
        assert f"| {name} | {number:,} |" in card
    for part, digest in record["model"].items():
        assert f"| {part} | {digest} |" in card
    for package in ("torch", "transformers", "pyarrow", "python"):
        assert f"| {package} | {record['environment'][package]} |" in card
    assert f"| `selections/` | {len(rows_of(few, 'selections')):,} | 3 |" in card
    assert [one["config_name"] for one in head_of(few)["configs"]] == ["selections", "prompts", "errors", "features"]


def test_the_python_in_it_runs(few, monkeypatch, tmp_path):
    monkeypatch.chdir(few)
    blocks = re.findall(r"```python\n(.*?)```", (few / "README.md").read_text(), re.S)
    assert len(blocks) == 3
    for block in blocks:
        names: dict = {}
        code = block.replace('split="train"', f'split="train", cache_dir="{tmp_path}"')
        exec(compile(code, "README.md", "exec"), names)
        assert len(names.get("selections", names.get("features", ()))) > 0


def test_files_that_no_record_names_are_not_read_by_it(small_pruned, tmp_path):
    """What a shard left whose commit was taken back."""
    output = small_pruned(tmp_path / "out", shards=1)
    write_table(output, "selections", 7, SELECTIONS.empty_table())
    write_card(Artifact(output), silent)
    files = {one["config_name"]: one["data_files"][0]["path"] for one in head_of(output)["configs"]}
    assert files == {
        "selections": ["selections/part-00000000.parquet"],
        "prompts": "prompts/part-*.parquet",
        "errors": "errors/part-*.parquet",
    }
    assert load_dataset(str(output), "selections", split="train", cache_dir=str(tmp_path / "cache")).num_rows == 3


def test_a_card_that_people_changed_stays_and_others_follow_the_records(small_pruned, tmp_path):
    output = small_pruned(tmp_path / "out", shards=1)
    artifact = Artifact(output)
    said: list[str] = []
    write_card(artifact, said.append)
    before = (output / "README.md").read_text()
    from tests.small_artifacts import write_pruned_shard

    write_pruned_shard(artifact, 1)
    write_card(artifact, said.append)
    assert (output / "README.md").read_text() != before
    assert (output / "README.md").read_bytes() == card_of(artifact)
    assert said == []
    changed = before.replace("# Pruned visual tokens", "# My corpus")
    (output / "README.md").write_text(changed)
    write_card(artifact, said.append)
    assert (output / "README.md").read_text() == changed
    assert said == [f"{output}/README.md was changed by hand and stays as it is; remove it to get a new one"]


def test_a_card_that_is_gone_is_written_by_the_same_command(few, prune, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(few, output)
    card = (output / "README.md").read_bytes()
    (output / "README.md").unlink()
    manifest = (output / "manifest.json").read_bytes()
    prune(output, **FEW)
    assert (output / "README.md").read_bytes() == card
    assert (output / "manifest.json").read_bytes() == manifest
    said = prune(output, **FEW)
    assert said == [f"3 shards are there already in {output}; nothing to do"]
