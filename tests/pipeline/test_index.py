"""The index: ownership, shards, growth. Needs Ray for the parallel scan."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.build_index import extend_index
from pipeline.corpus import resolve_corpus
from pipeline.errors import UserError
from pipeline.index import Index, read_index, unindexed_inputs

pytestmark = pytest.mark.usefixtures("ray_session")


def prompts_of(name: str) -> dict:
    return {"prompts": [{"id": f"{name}-{n}", "prompt": "what ?"} for n in range(2)]}


@pytest.fixture
def corpus(tmp_path: Path, jpeg, write_tar) -> str:
    """Three tars of 10 samples; sample 25 repeats the bytes of 3, sample 12 those of 11, sample 7 has no image."""
    seeds = {25: 3, 12: 11}
    for tar in range(3):
        members = []
        for n in range(tar * 10, tar * 10 + 10):
            if n != 7:
                members.append((f"{n:03d}.jpg", jpeg(seeds.get(n, n))))
            members.append((f"{n:03d}.json", prompts_of(f"{n:03d}")))
        write_tar(tmp_path / f"c-{tar}.tar", members)
    return str(tmp_path / "c-{0..2}.tar")


def build(corpus: str, root: Path, index: Index | None = None, **options) -> Index:
    inputs = unindexed_inputs(index, resolve_corpus([corpus]), root)
    return extend_index(root, index, inputs, **{"shard_size": 8, "limit": None, **options})


def rows_of(index: Index) -> list[dict]:
    return [row for shard in range(index.num_shards) for row in index.read_shard(shard).to_pylist()]


def test_every_sample_once_and_the_lowest_position_owns(corpus, tmp_path):
    index = build(corpus, tmp_path / "_index")
    rows = rows_of(index)
    assert Counter(row["source"] for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == index.num_samples == 30
    assert index.num_images == 27
    assert index.num_prompts == 60
    owners = [row for row in rows if row["slot"] is not None]
    assert [row["shard"] * 8 + row["slot"] for row in owners] == list(range(27))
    assert [(row["input"], row["sample"]) for row in owners] == sorted((row["input"], row["sample"]) for row in owners)
    by_source = {Path(row["source"]).name: row for row in rows}
    assert by_source["025.jpg"]["shard"] == by_source["003.jpg"]["shard"] == 0
    assert by_source["025.jpg"]["slot"] is None
    assert by_source["007"]["reason"] == "no_image"
    assert read_index(tmp_path / "_index") == index


def test_shards_are_the_same_however_the_index_is_split_into_files(corpus, tmp_path):
    whole = rows_of(build(corpus, tmp_path / "a"))
    split = build(corpus, tmp_path / "b", shards_per_file=2)
    assert len(split.files()) == 2
    assert rows_of(split) == whole


def test_growth_adds_shards_and_leaves_the_old_ones_alone(corpus, tmp_path):
    root = tmp_path / "_index"
    old = build(corpus.replace("{0..2}", "{0..1}"), root)
    before = {path: path.read_bytes() for path in old.files()}
    grown = build(corpus, root, old)
    assert {path: path.read_bytes() for path in old.files()} == before
    assert grown.num_shards > old.num_shards
    late = next(row for row in rows_of(grown) if row["source"].endswith("025.jpg"))
    assert (late["shard"], late["image_shard"], late["slot"]) == (old.num_shards, 0, None)
    assert grown.num_images == 27


def test_a_corpus_may_not_shrink_or_change(corpus, tmp_path):
    index = build(corpus, tmp_path / "_index")
    with pytest.raises(UserError, match="no longer names"):
        unindexed_inputs(index, resolve_corpus([corpus.replace("{0..2}", "{0..1}")]), tmp_path)
    with open(tmp_path / "c-2.tar", "ab") as stream:
        stream.write(b"\0" * 512)
    with pytest.raises(UserError, match="must not change"):
        unindexed_inputs(index, resolve_corpus([corpus]), tmp_path)


def test_limit_takes_the_first_samples(corpus, tmp_path):
    rows = rows_of(build(corpus, tmp_path / "_index", limit=13))
    assert max(Path(row["source"]).stem for row in rows) == "012"
    assert len(rows) == 13


def test_repeated_prompt_ids_are_named_after_the_first(tmp_path, jpeg, write_tar):
    record = {"prompts": [{"id": "same", "prompt": "one ?"}, {"id": f"own{0}", "prompt": "two ?"}]}
    for tar in range(2):
        write_tar(tmp_path / f"d-{tar}.tar", [("a.jpg", jpeg(tar)), ("a.json", record)])
    index = build(str(tmp_path / "d-0.tar"), tmp_path / "_index")
    index = build(str(tmp_path / "d-{0..1}.tar"), tmp_path / "_index", index)
    statuses = [[p["status"] for p in row["prompts"]] for row in rows_of(index)]
    assert statuses == [["ok", "ok"], ["duplicate_prompt_id", "duplicate_prompt_id"]]


def test_an_empty_corpus_is_refused(tmp_path, write_tar):
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(UserError, match="no sample"):
        build(str(tmp_path / "empty.tar"), tmp_path / "_index")
