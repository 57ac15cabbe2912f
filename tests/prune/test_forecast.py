"""`--plan` against what the run then does: bytes, counts, shards; and that it writes nothing."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from jobs import prune_corpus as job
from jobs.options import command_of
from jobs.plan_text import lines_of, size_text
from pipeline.artifact.payload import pack_features, packed_size
from pipeline.artifact.tables import in_tar, member_sizes, table_size, tar_size, write_table
from pipeline.errors import UserError
from pipeline.prune.forecast import Forecast, forecast
from pipeline.prune.measure import Size, owners_among
from pipeline.prune.settings import PruneSettings
from schemas.samples import Sample

WITHIN = 0.05


def settings_of(tiny_llava: str, corpus: str, output: Path, **changes: object) -> PruneSettings:
    given = {"corpus": (corpus,), "model": tiny_llava, "output": str(output), "shard_size": 64, "plan": True}
    return PruneSettings(**{**given, **changes})  # type: ignore[arg-type]


def written(output: Path) -> int:
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def bytes_of(output: Path, folder: str) -> int:
    return sum(path.stat().st_size for path in (output / folder).iterdir())


@pytest.fixture(scope="module")
def planned(tiny_llava, scenes_tars, tmp_path_factory) -> Forecast:
    """Of the bundled corpus, all of it, at 64 tokens."""
    output = tmp_path_factory.mktemp("plan") / "out"
    return forecast(settings_of(tiny_llava, scenes_tars, output, plan_sample=0, max_tokens="64"))


def test_bytes_are_those_that_the_run_then_writes(planned, pruned_64):
    assert planned.size_bytes == pytest.approx(written(pruned_64), rel=WITHIN)
    assert planned.table["float32"]["64"] == planned.size_bytes
    for folder, share in (("features", 0.02), ("payloads", 0.1), ("selections", 0.2), ("prompts", 0.3)):
        assert planned.parts[folder] == pytest.approx(bytes_of(pruned_64, folder), rel=share), folder
    assert planned.shards == len(list((pruned_64 / "_commits").iterdir()))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": "0.125", "feature_dtype": "int8", "features": "both"},
        {"max_tokens": "64", "features": "none"},
    ],
    ids=["0.125-int8", "64-none"],
)
def test_bytes_at_other_budgets_dtypes_and_forms(changes, prune, tiny_llava, scenes_tars, tmp_path):
    """Over the first 80 samples; and by a sample of all that takes in less of them."""
    output, part = tmp_path / "out", {**changes, "limit": 80}
    found = forecast(settings_of(tiny_llava, scenes_tars, output, plan_sample=0, **part))
    sampled = forecast(settings_of(tiny_llava, scenes_tars, output, plan_sample=40, **part))
    assert not output.exists()
    assert (found.census.whole, sampled.census.whole) == (True, False)
    prune(output, **part)
    assert found.size_bytes == pytest.approx(written(output), rel=WITHIN)
    assert sampled.size_bytes == pytest.approx(written(output), rel=2 * WITHIN)


def test_another_budget_and_dtype_in_the_table_are_those_of_a_run(planned, pruned_all):
    """The plan was for 64 tokens in the model's dtype; the run kept all, in both forms."""
    parquet = sum(path.stat().st_size for path in (pruned_all / "features").glob("*.parquet"))
    assert planned.table["float32"]["all"] == pytest.approx(written(pruned_all) - parquet, rel=WITHIN)


def test_counts_are_those_of_the_run(planned, pruned_64):
    counts = json.loads((pruned_64 / "manifest.json").read_text())["counts"]
    total = planned.census.total
    assert (total.samples, total.images, total.prompts) == tuple(counts[n] for n in ("samples", "images", "prompts"))
    errors = [
        row["reason"]
        for shard in json.loads((pruned_64 / "manifest.json").read_text())["shards"]
        for row in pq.read_table(pruned_64 / shard["files"]["errors"]["path"]).to_pylist()
    ]
    for reason, count in total.failed.items():
        assert errors.count(reason) >= count > 0  # an image that breaks off is found when it is decoded
    assert sum(total.failed.values()) >= len(errors) - 2
    assert planned.tokens == 256
    assert planned.shards == 5


def test_it_writes_nothing_and_gives_the_command_that_then_runs(
    tiny_llava, scenes_tars, tmp_path, capsys, monkeypatch, work_here
):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    arguments = [
        "--corpus",
        scenes_tars,
        "--model",
        tiny_llava,
        "--output",
        "out",
        "--max-tokens",
        "4",
        "--limit",
        "30",
    ]
    assert job.main([*arguments, "--plan", "--features", "none"]) == 0
    assert os.listdir(tmp_path) == []
    assert torch.get_num_threads() == threads
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"plan of {tmp_path}/out (nothing was written)"
    assert lines[1].startswith("corpus   30 samples, 30 distinct images, ")
    command = " ".join(lines[lines.index("the command:") + 1 :]).replace("\\", " ").split()
    assert command[:2] == ["zoo-prune", "prune"]
    assert "--plan" not in command
    assert command[command.index("--features") + 1] == "none"
    assert job.main([word.strip("'") for word in command[2:]]) == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert job.main([*arguments, "--plan", "--features", "none"]) == 0
    assert "1 shard, 1 of them there already" in capsys.readouterr().out


def test_the_plan_for_people(planned, tiny_llava, scenes_tars, tmp_path):
    settings = settings_of(tiny_llava, scenes_tars, tmp_path / "out", max_tokens="64", plan_sample=0)
    lines = lines_of(settings, planned, "the command")
    text = "\n".join(lines)
    assert f"output   {size_text(planned.size_bytes)} in 5 shards: " in text
    assert "by a look at all of them" in text
    assert "tokens   256 an image" in text
    (head,) = [line for line in lines if line.split() == ["64", "32", "128", "all"]]
    assert [line.split()[0] for line in lines[lines.index(head) + 1 :][:4]] == ["float32", "float16", "int8", "none"]
    assert "worker hours" in text
    assert max(map(len, lines)) < 200


def test_a_corpus_that_the_job_would_stop_at_is_told(planned, tiny_llava, scenes_tars, tmp_path):
    settings = settings_of(tiny_llava, scenes_tars, tmp_path / "out", plan_sample=0)
    for rate, stops in ((0.5, False), (0.001, True)):
        lines = lines_of(settings.model_copy(update={"max_error_rate": rate}), planned, "the command")
        assert any(line.startswith("stop     more samples than --max-error-rate") for line in lines) is stops


def test_time_is_what_the_stages_take(planned):
    images = planned.census.total.images
    assert planned.stage_sec["encode"] == pytest.approx(images * planned.measured.seconds["encode"])
    assert min(planned.measured.seconds.values()) > 0
    model = sum(planned.stage_sec[name] for name in ("encode", "score", "select"))
    assert planned.worker_hours == pytest.approx(model / 3600)
    assert planned.wall_sec >= model / planned.workers
    assert planned.wall_sec <= sum(planned.stage_sec.values())


def test_largest_block_is_that_of_the_fullest_shard(planned, tiny_llava, scenes_tars, tmp_path):
    pixels = 64 * planned.census.prepared[0]
    kept = 64 * packed_size(planned.measured.widths, 64, "float32")
    assert planned.block_bytes == pytest.approx(max(pixels, kept), rel=0.001)
    small = forecast(settings_of(tiny_llava, scenes_tars, tmp_path / "o", shard_bytes=8 * planned.census.prepared[0]))
    assert small.shards >= planned.census.total.images / 8
    assert small.block_bytes <= max(8 * planned.census.prepared[0], 8 * kept)


def test_what_the_job_would_refuse_is_refused(tiny_llava, scenes_tars, pruned_64, tmp_path, capsys):
    arguments = ["--corpus", scenes_tars, "--model", tiny_llava, "--shard-size", "64"]
    with pytest.raises(UserError, match="was started with other settings:\n  max_tokens: '64' -> '8'"):
        job.main([*arguments, "--output", str(pruned_64), "--max-tokens", "8", "--plan"])
    with pytest.raises(UserError, match="--plan-sample 5: nothing but --plan looks at a sample; give --plan too"):
        job.main([*arguments, "--output", str(tmp_path / "out"), "--plan-sample", "5"])
    with pytest.raises(UserError, match="--plan-sample -1: expected at least 0"):
        job.main([*arguments, "--output", str(tmp_path / "out"), "--plan", "--plan-sample", "-1"])
    bad = tmp_path / "m.jsonl"
    bad.write_text('{"image": "none.jpg"}\n')
    with pytest.raises(UserError, match="--plan: no sample it looked at has an image whose header can be read"):
        job.main(["--corpus", str(bad), "--model", tiny_llava, "--output", str(tmp_path / "out"), "--plan"])
    assert sorted(os.listdir(tmp_path)) == ["m.jsonl"]


def test_the_command_of_settings(tiny_llava):
    settings = PruneSettings(
        corpus=("a b.tar", "c.tar"), model="m", output="/o", max_tokens="0.25", batch_size="auto", shard_timeout_sec=5,
        verify=True, plan=True, plan_sample=3,
    )  # fmt: skip
    assert " ".join(command_of("zoo-prune prune", settings).replace("\\\n", " ").split()) == (
        "zoo-prune prune --corpus 'a b.tar' --corpus c.tar --model m --output /o --max-tokens 0.25 --batch-size auto "
        "--shard-timeout 5.0"
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("kept", [1, 64, 1000])
def test_the_size_of_a_payload(dtype, kept):
    tensors = {"features": torch.ones(kept, 48), "deepstack.0": torch.ones(kept, 16)}
    assert packed_size({name: rows.shape[1] for name, rows in tensors.items()}, kept, dtype) == len(
        pack_features(tensors, dtype)
    )


def test_the_sizes_of_files(pruned_all, tmp_path):
    for shard in json.loads((pruned_all / "manifest.json").read_text())["shards"]:
        files = {name: pruned_all / entry["path"] for name, entry in shard["files"].items()}
        for name in ("selections", "prompts", "errors", "features.parquet"):
            table = pq.read_table(files[name])
            assert table_size(table) == write_table(tmp_path, name, 0, table).size_bytes
        selections, features = pq.read_table(files["selections"]), pq.read_table(files["features.parquet"])
        members = [*member_sizes(selections), *(len(payload.as_py()) for payload in features["features"])]
        assert tar_size(sum(map(in_tar, members))) == files["features.webdataset"].stat().st_size


def test_the_size_of_rows_is_that_of_more_of_them(pruned_all):
    table = pq.read_table(pruned_all / "prompts")
    assert Size.of(table.slice(0, 400)).at(len(table), 1) == pytest.approx(table_size(table), rel=0.1)
    assert Size.of(table.slice(0, 1)).at(1, 1) == table_size(table.slice(0, 1))


def test_a_corpus_of_which_nothing_can_be_used_is_refused_with_the_reasons(tiny_llava, tmp_path):
    lines = [json.dumps({"image": "none.jpg"}), json.dumps({"image": "none.jpg"}), "no JSON"]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        forecast(settings_of(tiny_llava, str(tmp_path / "m.jsonl"), tmp_path / "out"))
    assert f"2 missing_file, as {tmp_path}/none.jpg does not exist; 1 bad_record, as " in str(caught.value)


def test_what_the_scan_refuses_is_not_tried_again():
    """The second image of a key has a row; it is no image that failed when it was decoded."""
    found = [Sample(input=0, sample=n, source=f"{n}", image_id=f"{n:064x}", width=8, height=8) for n in range(2)]
    found[1].reason = "duplicate_key"
    assert [row.image_id for row in owners_among(found, 8)] == [found[0].image_id]
