"""Every line of the benchmark for GPUs runs here on the CPU, at small size."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

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


def test_how_busy_a_gpu_is_comes_from_nvidia_smi_which_need_not_know(monkeypatch, tmp_path):
    """A part of a GPU has no figure of its own; what is said later counts."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ -e "$0.asked" ] && echo 40 || echo "[N/A]"\ntouch "$0.asked"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with gpu.utilisation_of(torch.device("cuda")) as busy:
        end = time.monotonic() + 10
        while not busy and time.monotonic() < end:
            time.sleep(0.05)
    assert set(busy) == {40.0}
    assert gpu.mean_of(busy) == 40.0
    assert gpu.mean_of([]) is None


def test_a_gpu_has_done_its_work_before_the_clock_is_read(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append(device.type))
    run = gpu.Run(torch.device("cuda"), small=True, work=Path())
    assert run.model_dtype == torch.bfloat16
    assert run.seconds(lambda: told.append("work")) >= 0
    assert told == ["cuda", "work", "cuda"]
