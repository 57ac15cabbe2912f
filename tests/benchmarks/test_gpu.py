"""Every line of the benchmark for GPUs runs here on the CPU, at small size."""

import json

import pytest

from benchmarks import gpu


def test_the_small_form_runs_every_table(work_here, tmp_path):
    path = tmp_path / "gpu.json"
    found = gpu.main(["--small", "--device", "cpu", "--output", str(path)])
    assert json.loads(path.read_text()) == found
    assert list(found) == list(gpu.TABLES)
    shapes = ["LLaVA-1.5", "LLaVA-NeXT", "Qwen2.5-VL"]
    for name in ("job", "answer"):
        assert [row["shape"] for row in found[name]["rows"]] == shapes
    assert [row["kept_sets_equal"] for row in found["agreement"]["rows"]] == [1.0] * 4
    for row in found["waits"]["rows"]:
        assert row["waits"] <= gpu.GOALS["waits a batch"]
        assert row["launches"] > row["launches_of_the_tower"] > 0
    for row in found["job"]["rows"]:
        assert row["images"] == 4
        assert row["job_images_per_sec"] > 0
    assert all(row["new_tokens_per_sec"] > 0 for row in found["answer"]["rows"])
    assert {row["dtype"] for row in found["ops"]["rows"]} == {"float32", "bfloat16"}


def test_without_a_gpu_it_says_what_can_be_run(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--output", "-"])
    assert "--small runs every line on the CPU" in capsys.readouterr().err
