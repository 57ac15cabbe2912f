"""The artifact of a real run over the bundled corpus, read by its contracts."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load

from pipeline.artifact.payload import unpack_features
from pipeline.errors import UserError
from schemas.tables import ERRORS, FEATURES, PROMPTS, SELECTIONS

SCENES = Path(__file__).resolve().parents[2] / "examples" / "scenes"


def rows_of(root: Path, table: str) -> list[dict]:
    manifest = json.loads((root / "manifest.json").read_text())
    return [row for s in manifest["shards"] for row in pq.read_table(root / s["files"][table]["path"]).to_pylist()]


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def corpus() -> dict[str, tuple[bytes | None, dict]]:
    """Source -> (image bytes, JSON record), read from the tars by their own rules."""
    samples: dict[str, tuple[bytes | None, dict]] = {}
    for path in sorted(SCENES.glob("scenes-*.tar")):
        with tarfile.open(path) as archive:
            members = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
        for name, data in members.items():
            if not name.endswith(".json"):
                samples[f"{path.name}/{name}"] = (data, json.loads(members[name.rpartition(".")[0] + ".json"]))
    return samples


def test_every_file_is_the_one_its_commit_record_describes(pruned_all):
    assert (pruned_all / "_SUCCESS").exists()
    shards = sorted((pruned_all / "_commits").iterdir())
    assert [p.name for p in shards] == [f"{n:08d}.json" for n in range(5)]
    named = set()
    for path in shards:
        for entry in json.loads(path.read_text())["files"].values():
            data = (pruned_all / entry["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size_bytes"], entry["sha256"])
            named.add(entry["path"])
    written = {str(p.relative_to(pruned_all)) for p in pruned_all.rglob("*") if p.is_file() and p.parent != pruned_all}
    assert written - named == {f"_commits/{p.name}" for p in shards} | {
        "_index/index.json",
        "_index/part-00000000.parquet",
    }


def test_all_files_of_a_table_have_its_schema(pruned_all):
    for table, schema in (("selections", SELECTIONS), ("prompts", PROMPTS), ("errors", ERRORS), ("features", FEATURES)):
        files = sorted((pruned_all / table).glob("part-*.parquet"))
        assert len(files) == 5
        for path in files:
            assert pq.read_schema(path).equals(schema), path
            assert pq.read_schema(path).equals(pq.read_schema(files[0]), check_metadata=True), path


def test_nothing_vanishes(pruned_all, corpus):
    prompts, errors, selections = (rows_of(pruned_all, t) for t in ("prompts", "errors", "selections"))
    expected = {p["id"]: (p["prompt"], source) for source, (_, record) in corpus.items() for p in record["prompts"]}
    assert {row["prompt_id"]: (row["prompt"], row["source"]) for row in prompts} == expected
    assert len(prompts) == len(expected)
    bad = {"scenes-000000.tar/000017.jpg", "scenes-000000.tar/000031.jpg", "scenes-000000.tar/000042.jpg"}
    assert {(row["source"], row["reason"]) for row in errors} == {
        ("scenes-000000.tar/000017.jpg", "unreadable_image"),
        ("scenes-000000.tar/000031.jpg", "empty_file"),
        ("scenes-000000.tar/000042.jpg", "unreadable_image"),
        ("scenes-000001.tar/000160.jpg", "empty_prompt"),
    }
    distinct = {hashlib.sha256(data).hexdigest() for source, (data, _) in corpus.items() if source not in bad}
    assert sorted(row["image_id"] for row in selections) == sorted(distinct)
    for row in prompts:
        data, _ = corpus[row["source"]]
        assert row["image_id"] == hashlib.sha256(data).hexdigest()
        if row["source"] in bad:
            assert row["status"] in ("unreadable_image", "empty_file")
        else:
            assert row["status"] == ("ok" if row["prompt"].strip() else "empty_prompt")


def test_duplicates_ride_in_their_owners_shard(pruned_all):
    owner = {row["image_id"]: row for row in rows_of(pruned_all, "selections")}
    by_source: dict[str, dict] = {row["source"]: row for row in rows_of(pruned_all, "prompts")}
    for first, second in (("0.tar/000022", "0.tar/000088"), ("0.tar/000065", "2.tar/000270")):
        one, two = (by_source[f"scenes-00000{name}.jpg"] for name in (first, second))
        assert one["image_id"] == two["image_id"]
        assert one["shard"] == two["shard"] == owner[one["image_id"]]["shard"]
        assert owner[one["image_id"]]["source"] == one["source"]


def test_selections_describe_their_images(pruned_64, corpus):
    for row in rows_of(pruned_64, "selections"):
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(corpus[row["source"]][0])))
        assert (row["width"], row["height"]) == image.size
        assert (row["num_tokens"], row["num_kept"], row["num_structure"]) == (256, 64, 0)
        assert row["grid"] == {"rows": 16, "cols": 16, "tiles": 1}
        assert len(set(row["ranking"])) == len(row["ranking"]) == len(row["gain"]) == 64
        assert len(row["sensitivity"]) == 256
        assert all(a >= b for a, b in zip(row["gain"][1:], row["gain"][2:], strict=False))
        for token, position in zip(row["ranking"], row["position"], strict=True):
            assert (position["row"], position["col"]) == divmod(token, 16)


def test_features_are_the_same_in_both_forms_and_in_pick_order(pruned_all, pruned_64):
    whole = {row["image_id"]: row for row in rows_of(pruned_all, "features.parquet")}
    for shard in range(5):
        with tarfile.open(pruned_all / "features" / f"shard-{shard:08d}.tar") as archive:
            for member in archive.getmembers():
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                if member.name.endswith(".features.safetensors"):
                    data = archive.extractfile(member).read()  # type: ignore[union-attr]
                    assert whole[member.name.partition(".")[0]]["features"] == data
    assert {row["num_kept"] for row in whole.values()} == {256}
    with tarfile.open(pruned_64 / "features" / "shard-00000000.tar") as archive:
        for member in archive.getmembers():
            if member.name.endswith(".features.safetensors"):
                few = load(archive.extractfile(member).read())["features"]  # type: ignore[union-attr]
                many = unpack_features(whole[member.name.partition(".")[0]]["features"])["features"]
                assert few.shape == (64, many.shape[1])
                assert torch.equal(few, many[:64])


def test_running_again_writes_nothing(pruned_64, prune):
    before = snapshot(pruned_64)
    said = prune(pruned_64, max_tokens="64")
    assert "nothing to do" in said[-1]
    assert snapshot(pruned_64) == before


def test_other_settings_into_the_same_folder_are_refused(pruned_64, prune):
    before = snapshot(pruned_64)
    with pytest.raises(UserError, match=r"max_tokens: '64' -> '32'"):
        prune(pruned_64, max_tokens="32")
    with pytest.raises(UserError, match=r"seed: 0 -> 7"):
        prune(pruned_64, max_tokens="64", seed=7)
    assert snapshot(pruned_64) == before


def test_manifest_corpus_gives_the_same_decisions(pruned_64, prune, scenes_manifest, tmp_path):
    prune(tmp_path / "out", corpus=(scenes_manifest,), max_tokens="64", limit=150)
    unequal = ("source",)
    first, second = (
        [{k: v for k, v in row.items() if k not in unequal} for row in rows_of(root, "selections")]
        for root in (pruned_64, tmp_path / "out")
    )
    assert len(second) > 140
    assert first[: len(second)] == second


def test_growing_and_damage(prune, scenes_tars, tmp_path):
    """A grown corpus keeps its old shards to the byte; a damaged shard is done again to the same bytes."""
    output, settings = tmp_path / "out", {"max_tokens": "16", "shard_size": 32}
    prune(output, corpus=(scenes_tars.replace("{000000..000002}", "{000000..000001}"),), **settings)
    old = {
        name: data
        for name, (_, data) in snapshot(output).items()
        if name.startswith(("selections", "features", "prompts"))
    }
    said = prune(output, **settings)
    grown = snapshot(output)
    assert all(grown[name][1] == data for name, data in old.items())
    assert len(rows_of(output, "selections")) == 307
    assert any("shards are there already" in line for line in said)
    late = next(row for row in rows_of(output, "prompts") if row["source"].endswith("000270.jpg"))
    assert (late["status"], late["shard"] > late["image_shard"]) == ("ok", True)

    (output / "selections" / "part-00000001.parquet").write_bytes(b"short")
    (output / "_commits" / "00000002.json").write_text("{")
    said = prune(output, **settings)
    assert sum("is done again" in line for line in said) == 2
    tables = ("selections", "prompts", "errors", "features")
    assert {n: d for n, (_, d) in snapshot(output).items() if n.startswith(tables)} == {
        n: d for n, (_, d) in grown.items() if n.startswith(tables)
    }


def test_limit_and_feature_dtypes(prune, pruned_64, tmp_path):
    exact = {row["image_id"]: row["ranking"] for row in rows_of(pruned_64, "selections")}
    for dtype in ("int8", "float16"):
        output = tmp_path / dtype
        prune(output, max_tokens="0.0625", limit=12, feature_dtype=dtype, features="parquet")
        rows = rows_of(output, "features.parquet")
        assert len(rows) == 12
        assert {(row["dtype"], row["num_kept"], row["width"]) for row in rows} == {(dtype, 16, 128)}
        assert not list((output / "features").glob("*.tar"))
        for row in rows_of(output, "selections"):
            assert row["ranking"] == exact[row["image_id"]][:16]
