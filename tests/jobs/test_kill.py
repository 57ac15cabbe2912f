"""SIGKILL of the driver in mid-run: the next run completes it to the same bytes, and a third one writes nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TABLES = ("selections", "prompts", "errors", "features")


def command(corpus: str, model: str, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "jobs.prune_corpus", "--corpus", corpus, "--model", model, "--output", str(output),
        "--max-tokens", "16", "--shard-size", "16", "--features", "both",
    ]  # fmt: skip


def data_of(output: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(output)): p.read_bytes()
        for table in TABLES
        for p in (output / table).iterdir()
        if not p.name.startswith(".")
    }


def commits(output: Path) -> int:
    folder = output / "_commits"
    return len([p for p in folder.iterdir() if p.suffix == ".json"]) if folder.is_dir() else 0


def test_a_killed_driver_loses_nothing(scenes_tars, tiny_llava, prune, tmp_path):
    prune(tmp_path / "calm", max_tokens="16", shard_size=16, features="both")
    output = tmp_path / "killed"
    with subprocess.Popen(command(scenes_tars, tiny_llava, output), cwd=REPO, stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 240
        while commits(output) < 3:
            assert driver.poll() is None, "the driver ended before it could be killed"
            assert time.monotonic() < deadline, "no shard was committed in time"
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    survived = commits(output)
    assert not (output / "_SUCCESS").exists()
    assert survived < 20

    again = subprocess.run(command(scenes_tars, tiny_llava, output), cwd=REPO, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "shards are there already" in again.stderr
    assert data_of(output) == data_of(tmp_path / "calm")

    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    third = subprocess.run(command(scenes_tars, tiny_llava, output), cwd=REPO, capture_output=True, text=True)
    assert third.returncode == 0, third.stderr
    assert "nothing to do" in third.stderr
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before
