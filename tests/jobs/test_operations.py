"""What an operator relies on: error rates, redoing, verifying, the log, a measured batch size."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs import prune_corpus as job
from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.prune import job as prune_job
from pipeline.prune.encode import EncodeShards
from pipeline.prune.job import PruneSettings, prune_corpus
from pipeline.prune.write import failed_samples

REPO = Path(__file__).resolve().parents[2]


def write_manifest(folder: Path, jpeg, count: int, present: range) -> Path:
    """`count` samples, of which only those in `present` have their image file."""
    folder.mkdir(exist_ok=True)
    lines = []
    for n in range(count):
        if n in present:
            (folder / f"{n:04d}.jpg").write_bytes(jpeg(n))
        lines.append(json.dumps({"image": f"{n:04d}.jpg", "prompts": [{"id": f"p{n}", "prompt": "what ?"}]}))
    path = folder / "m.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def statuses(output: Path) -> dict[str, str]:
    import pyarrow.dataset as ds

    manifest = json.loads((output / "manifest.json").read_text())
    files = [str(output / s["files"]["prompts"]["path"]) for s in manifest["shards"]]
    return {row["prompt_id"]: row["status"] for row in ds.dataset(files).to_table().to_pylist()}


@pytest.mark.usefixtures("work_here")
def test_a_misconfigured_corpus_stops_before_any_image_is_encoded(tmp_path, jpeg, tiny_llava):
    manifest = write_manifest(tmp_path / "c", jpeg, 120, range(50))
    settings = PruneSettings(corpus=(str(manifest),), model=tiny_llava, output=str(tmp_path / "out"), max_tokens="4")
    with pytest.raises(UserError, match=r"70 of the first 120 inputs failed.*missing_file \(70\)"):
        prune_corpus(settings, lambda _: None)
    assert not (tmp_path / "out" / "_index" / "index.json").exists()
    for n in range(50, 120):
        (manifest.parent / f"{n:04d}.jpg").write_bytes(jpeg(n))
    assert prune_corpus(settings, lambda _: None).images == 120


@pytest.mark.usefixtures("work_here")
def test_too_many_undecodable_images_stop_the_job(tmp_path, jpeg, tiny_llava):
    manifest = write_manifest(tmp_path / "c", jpeg, 120, range(120))
    for n in range(100):
        (manifest.parent / f"{n:04d}.jpg").write_bytes(b"no image at all %d" % n)
    settings = PruneSettings(
        corpus=(str(manifest),), model=tiny_llava, output=str(tmp_path / "out"), max_tokens="4", shard_size=60
    )
    with pytest.raises(UserError, match=r"inputs failed, more than --max-error-rate 0.5: unreadable_image"):
        prune_corpus(settings, lambda _: None)
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.usefixtures("work_here")
def test_redo_errors_takes_up_files_that_were_missing(tmp_path, jpeg, tiny_llava):
    manifest = write_manifest(tmp_path / "c", jpeg, 12, range(8))
    output = tmp_path / "out"
    settings = {
        "corpus": (str(manifest),),
        "model": tiny_llava,
        "output": str(output),
        "max_tokens": "4",
        "shard_size": 4,
    }
    prune_corpus(PruneSettings(**settings), lambda _: None)
    assert sorted(statuses(output).values()) == ["missing_file"] * 4 + ["ok"] * 8
    first = (output / "selections" / "part-00000000.parquet").read_bytes()
    for n in (8, 9, 10):
        (manifest.parent / f"{n:04d}.jpg").write_bytes(jpeg(n if n != 10 else 0))  # sample 10 repeats the bytes of 0
    said: list[str] = []
    prune_corpus(PruneSettings(**settings, redo_errors=True), said.append)
    assert any("transient failures: done again" in line for line in said)
    after = statuses(output)
    assert {p for p, s in after.items() if s != "ok"} == {"p11"}
    assert (output / "selections" / "part-00000000.parquet").read_bytes() == first
    fresh = tmp_path / "fresh"
    prune_corpus(PruneSettings(**{**settings, "output": str(fresh)}), lambda _: None)
    assert statuses(fresh) == after


def test_verify_reads_every_byte_and_mends(pruned_64, prune, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pruned_64, copy)
    assert "verified 5 committed shards" in prune(copy, max_tokens="64", verify=True)
    path = copy / "features" / "shard-00000002.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    said = prune(copy, max_tokens="64", verify=True)
    assert any(line.startswith("shard 00000002 is done again") and "sha256" in line for line in said)
    assert path.read_bytes() == (pruned_64 / "features" / "shard-00000002.tar").read_bytes()


def test_what_a_shard_took_and_held_stands_in_its_commit_record(pruned_64):
    records = list(Artifact(pruned_64).commits())
    assert [record.shard for record in records] == list(range(5))
    assert all(set(record.seconds) == {"read", "decode", "encode", "score", "select", "write"} for record in records)
    assert sum(record.files["selections"].rows for record in records) == 307
    failed = sum(sum(failed_samples(record).values()) for record in records)
    assert failed == sum(record.counts["samples"] - record.counts["samples.ok"] for record in records) > 0
    assert not (pruned_64 / "_failures").exists()


def test_a_measured_batch_size_is_kept(prune, tmp_path):
    output = tmp_path / "out"
    prune(output, max_tokens="4", limit=8, batch_size="auto")
    first = json.loads((output / "_job.json").read_text())
    assert first["resolved"]["batch_size"] in {2**n for n in range(9)}
    (output / "_commits" / "00000000.json").unlink()
    before = (output / "_job.json").read_bytes()
    said = prune(output, max_tokens="4", limit=8, batch_size="auto")
    assert (output / "_job.json").read_bytes() == before
    assert not any("fastest" in line for line in said)


def test_a_run_that_ends_before_its_batch_size_is_measured_is_resumed(prune, tmp_path, monkeypatch):
    """The index comes first, the job record before it."""
    output, settings = tmp_path / "out", {"max_tokens": "4", "limit": 8, "batch_size": "auto"}
    with monkeypatch.context() as patch:
        patch.setattr(prune_job, "find_batch_size", lambda *_: (_ for _ in ()).throw(UserError("it died")))
        with pytest.raises(UserError, match="it died"):
            prune(output, **settings)
    assert json.loads((output / "_job.json").read_text())["resolved"] == {}
    assert (output / "_index" / "index.json").exists()
    said = prune(output, **settings)
    assert any("fastest" in line for line in said)
    assert json.loads((output / "_job.json").read_text())["resolved"]["batch_size"] >= 1
    assert (output / "_SUCCESS").exists()


def test_a_shard_that_runs_out_of_memory_is_that_of_a_run_at_half_the_batch(prune, tmp_path, monkeypatch):
    """Its neighbours are made at the batch size that was asked for."""
    settings = {"max_tokens": "4", "limit": 24, "shard_size": 8}
    half = tmp_path / "half"
    prune(half, **settings, batch_size=4)
    crowded = {row["image_id"] for row in pq.read_table(half / "selections/part-00000001.parquet").to_pylist()}
    own = EncodeShards._launch

    def launch(self: EncodeShards, batch: Any) -> Any:
        if len(batch.rows) > 4 and any(row.image_id in crowded for row in batch.rows):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return own(self, batch)

    monkeypatch.setattr(EncodeShards, "_launch", launch)
    said = prune(tmp_path / "out", **settings, batch_size=8)
    records = list(Artifact(tmp_path / "out").commits())
    assert [record.batch_size for record in records] == [8, 4, 8]
    (told,) = [line for line in said if "ran out of memory" in line]
    assert told.startswith("shard 00000001 ran out of memory at batch size 8 and was done at 4;")
    made = {name: entry.sha256 for name, entry in records[1].files.items()}
    asked_for = Artifact(half).read_commit(1)
    assert asked_for is not None
    assert made == {name: entry.sha256 for name, entry in asked_for.files.items()}


def test_shards_are_cut_by_the_bytes_of_prepared_pixels(prune, tmp_path):
    """The bundled model takes 128 x 128 pixels of every image: 48 KiB, of which three and a half fit."""
    prune(tmp_path / "out", max_tokens="4", limit=8, shard_bytes=7 * 24 << 10)
    records = list(Artifact(tmp_path / "out").commits())
    assert [record.counts["images"] for record in records] == [3, 3, 2]
    with pytest.raises(UserError, match="shard_bytes: 172032 -> 1073741824"):
        prune(tmp_path / "out", max_tokens="4", limit=8)


@pytest.mark.usefixtures("work_here")
def test_a_job_whose_every_input_failed_has_status_1(tmp_path, jpeg, tiny_llava, capsys):
    manifest = write_manifest(tmp_path / "c", jpeg, 3, range(0))
    command = ["--corpus", str(manifest), "--model", tiny_llava, "--output", str(tmp_path / "out")]
    for _ in range(2):  # also when there is nothing left to do
        assert job.main(command) == 1
        told = capsys.readouterr().err.splitlines()
        assert told[-1] == "error: not one input could be used; the errors table says why of each"
    (tmp_path / "c" / "0001.jpg").write_bytes(jpeg(1))
    assert job.main([*command, "--redo-errors"]) == 0


@pytest.mark.usefixtures("work_here")
def test_shards_that_were_all_given_up_are_not_called_unusable_inputs(tmp_path, jpeg, tiny_llava, capsys):
    manifest = write_manifest(tmp_path / "c", jpeg, 3, range(3))
    model = shutil.copytree(tiny_llava, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -99}))
    command = ["--corpus", str(manifest), "--model", str(model), "--output", str(tmp_path / "out"), "--retries", "0"]
    assert job.main(command) == 1
    told = capsys.readouterr().err.splitlines()
    assert "1 shard was given up: 0; tracebacks are in _failures/" in told
    assert not any("not one input" in line for line in told)


@pytest.mark.parametrize("harm", ["empty the manifest", "copy a record", "alter a copy", "lose the manifest"])
@pytest.mark.parametrize("verify", [False, True])
def test_manifests_and_stray_records_are_mended(pruned_64, prune, tmp_path, harm, verify):
    copy = tmp_path / "copy"
    shutil.copytree(pruned_64, copy)
    stray = copy / "_commits" / "00000007.json"
    if harm == "empty the manifest":
        (copy / "manifest.json").write_text("{}")
    elif harm == "lose the manifest":
        (copy / "manifest.json").unlink()
    else:
        record = (copy / "_commits" / "00000001.json").read_text()
        stray.write_text(record if harm == "copy a record" else record.replace('"shard": 1,', '"shard": 7,'))
    said = prune(copy, max_tokens="64", verify=verify)
    if "copy" in harm:
        assert "the commit record of shard 00000007 is removed: this output has 5 shards" in said
    assert not stray.exists()
    assert (copy / "manifest.json").read_bytes() == (pruned_64 / "manifest.json").read_bytes()
    assert len(list(Artifact(copy).checked_commits())) == 5
    again = prune(copy, max_tokens="64")
    assert again == [f"5 shards are there already in {copy}; nothing to do"]


def test_an_output_that_can_not_be_looked_at_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"can't be read: File name too long; .*name another folder"):
        Artifact(tmp_path / ("x" * 300)).read_job()
