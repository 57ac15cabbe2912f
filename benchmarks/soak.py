"""20,000 images in one run: does memory grow, does an image take longer at the end than at the beginning?

    python benchmarks/soak.py                                20,000 images, benchmarks/results/soak.json
    python benchmarks/soak.py --images 2000 --output -

Every second the resident memory of the driver, of each of its Ray workers and of Ray's own services is read from
/proc (private pages apart from those shared with the object store). The run's working time, from the first model batch
to the last commit, is cut into quarters by images; the last quarter is compared with the first after the warm-up, which
is the first 5 % of the images. First of all every image must have its row.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, which holds a file by the name of a standard module (selectors).
sys.path[0] = str(ROOT)

import argparse
import itertools
import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.ops import environment
from benchmarks.synthetic import make_corpus

MODEL = "examples/tiny-llava"
WARM_UP = 0.05
MODEL_STAGES = ("encode", "score", "select")
MB = 1 << 20


@dataclass
class Sample:
    """Resident memory at one moment, MB by role: private pages (anonymous), without the shared object store."""

    time: float
    memory: dict[str, float]


def role_of(title: str) -> str | None:
    """What a process below the driver is: a worker, one of Ray's services, or nothing of interest."""
    if title.startswith("ray::"):
        return "workers"
    if any(name in title for name in ("raylet", "gcs_server", "dashboard", "log_monitor", "agent")):
        return "ray services"
    return None


def sample(driver: int) -> Sample:
    """Read /proc once; workers are the processes of Ray tasks and actors, idle ones included."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stream:
                parents[int(name)] = int(stream.read().rpartition(b")")[2].split()[1])
    memory = {"driver": private_mb(driver), "workers": 0.0, "largest worker": 0.0, "ray services": 0.0}
    for pid in parents:
        above = pid
        while above in parents and above != driver:
            above = parents[above]
        if above != driver or pid == driver:
            continue
        with suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            role = role_of(title)
            if role is not None:
                memory[role] += private_mb(pid)
                if role == "workers":
                    memory["largest worker"] = max(memory["largest worker"], private_mb(pid))
    return Sample(time.time(), memory)


def private_mb(pid: int) -> float:
    """Anonymous resident pages of a process in MB; 0 when it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / MB
    return 0.0


def quarters(records: list[dict[str, Any]], samples: list[Sample]) -> dict[str, Any]:
    """Time an image and memory per quarter of the images behind the warm-up."""
    records = sorted(records, key=lambda record: record["committed"])
    total = sum(record["counts"]["images"] for record in records)
    done, marks = 0, []  # (images done, at)
    for record in records:
        done += record["counts"]["images"]
        marks.append((done, record["committed"]))
    begin = next(i for i, (images, _) in enumerate(marks) if images >= WARM_UP * total)
    first_images = marks[begin][0]
    edges = [begin]
    for quarter in range(1, 5):
        goal = first_images + quarter * (total - first_images) / 4
        edges.append(next(i for i, (images, _) in enumerate(marks) if images >= goal - 1e-6))
    rows = []
    for left, right in itertools.pairwise(edges):
        (images_0, time_0), (images_1, time_1) = marks[left], marks[right]
        inside = [s.memory for s in samples if time_0 <= s.time < time_1]
        images = images_1 - images_0
        in_the_model = sum(r["seconds"][stage] for r in records[left + 1 : right + 1] for stage in MODEL_STAGES)
        rows.append(
            {
                "images": images,
                "ms_an_image": 1000 * (time_1 - time_0) / images,
                "model_ms_an_image": 1000 * in_the_model / images,
                "memory_mb": {role: median(m[role] for m in inside) for role in inside[0]},
            }
        )
    first, last = rows[0], rows[-1]
    return {
        "quarters": rows,
        "last_to_first": {
            "ms_an_image": last["ms_an_image"] / first["ms_an_image"],
            "model_ms_an_image": last["model_ms_an_image"] / first["model_ms_an_image"],
            **{f"memory, {role}": last["memory_mb"][role] / first["memory_mb"][role] for role in first["memory_mb"]},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/soak.json"), help="- for none")
    given = parser.parse_args()
    result: dict[str, Any] = {
        "environment": environment(torch.device("cpu")),
        "settings": {n: v for n, v in vars(given).items() if n != "output"},
    }
    result["environment"]["cpus"] = os.cpu_count()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        corpus = make_corpus(Path(folder) / "corpus", given.images)
        output = Path(folder) / "out"
        command = [
            sys.executable, "-m", "jobs.prune_corpus", "--corpus", corpus, "--model", MODEL, "--output", str(output),
            "--shard-size", str(given.shard_size), "--workers", "1",
        ]  # fmt: skip
        samples = []
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as driver:
            while driver.poll() is None:
                samples.append(sample(driver.pid))
                time.sleep(1)
        assert driver.returncode == 0, "the job failed"
        records = [json.loads(path.read_text()) for path in sorted((output / "_commits").glob("*.json"))]
    rows = sum(record["files"]["selections"]["rows"] for record in records)
    assert rows == given.images, f"{rows} rows for {given.images} images"
    began, ended = min(r["began"] for r in records), max(r["committed"] for r in records)
    result |= {"images": rows, "shards": len(records), "working_sec": ended - began, "samples": len(samples)}
    result |= quarters(records, samples)
    result["peak_mb"] = {role: max(s.memory[role] for s in samples) for role in samples[0].memory}
    print(json.dumps(result, indent=1))
    if given.output != "-":
        Path(given.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
