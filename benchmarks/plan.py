"""What `--plan` says against what the job then does: bytes, shards, seconds of each stage, time from batch to commit.

    python benchmarks/plan.py                       2,000 images, benchmarks/results/plan.json
    python benchmarks/plan.py --images 300 --output -

Each plan runs in this process, before Ray starts anywhere. A job's times are those of its own commit records, its bytes
those of its whole folder. `said / done` above 1 means that the plan said too much.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, which holds a file by the name of a standard module (selectors).
sys.path[0] = str(ROOT)

import argparse
import json
import os
import subprocess
import tempfile
import time
from typing import Any

import torch

from benchmarks.ops import environment
from benchmarks.synthetic import make_corpus
from jobs.console import quiet_libraries
from pipeline.prune.forecast import MODEL_STAGES, forecast
from pipeline.prune.settings import PruneSettings
from schemas.views import STAGES

MODEL = "examples/tiny-llava"
CASES: dict[str, dict[str, Any]] = {
    "64 tokens, float32, tars": {"max_tokens": "64"},
    "0.125 of tokens, int8, Parquet": {"max_tokens": "0.125", "feature_dtype": "int8", "features": "parquet"},
    "rankings alone": {"max_tokens": "64", "features": "none"},
}


def plan_of(corpus: str, output: Path, given: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    """What the plan says, and how long it takes to say it."""
    began = time.perf_counter()
    found = forecast(
        PruneSettings(
            corpus=(corpus,), model=MODEL, output=str(output), shard_size=given.shard_size, workers=given.workers,
            plan=True, plan_sample=given.sample, **case,
        )
    )  # fmt: skip
    return {
        "planning_sec": time.perf_counter() - began,
        "looked_at": found.census.seen.samples,
        "images": found.census.total.images,
        "shards": found.shards,
        "bytes": found.size_bytes,
        "stage_sec": {stage: found.stage_sec[stage] for stage in STAGES},
        "worker_sec": 3600 * found.worker_hours,
        "working_sec": found.wall_sec - found.stage_sec["scan"] / found.cpus,
        "limit": found.limit,
    }


def run_of(corpus: str, output: Path, given: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    """What the job does, as a user runs it."""
    options = [word for name, value in case.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = [
        sys.executable, "-m", "jobs.prune_corpus", "--corpus", corpus, "--model", MODEL, "--output", str(output),
        "--shard-size", str(given.shard_size), "--workers", str(given.workers), *options,
    ]  # fmt: skip
    began = time.time()
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    whole = time.time() - began
    records = [json.loads(path.read_text()) for path in sorted((output / "_commits").glob("*.json"))]
    stages = {stage: sum(record["seconds"][stage] for record in records) for stage in STAGES}
    return {
        "images": sum(record["counts"]["images"] for record in records),
        "shards": len(records),
        "bytes": sum(path.stat().st_size for path in output.rglob("*") if path.is_file()),
        "stage_sec": stages,
        "worker_sec": sum(stages[stage] for stage in MODEL_STAGES),
        "working_sec": max(r["committed"] for r in records) - min(r["began"] for r in records),
        "job_sec": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sample", type=int, default=PruneSettings.model_fields["plan_sample"].default)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/plan.json"), help="- for none")
    given = parser.parse_args()
    quiet_libraries()
    result: dict[str, Any] = {
        "environment": environment(torch.device("cpu")) | {"cpus": os.cpu_count(), "threads": 1},
        "settings": {name: value for name, value in vars(given).items() if name != "output"},
        "cases": {},
    }
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        corpus = make_corpus(Path(folder) / "corpus", given.images, with_faults=True)
        for number, (name, case) in enumerate(CASES.items()):
            output = Path(folder) / f"out-{number}"
            said = plan_of(corpus, output, given, case)
            assert not output.exists(), "a plan writes nothing"
            done = run_of(corpus, output, given, case)
            compared = ("images", "shards", "bytes", "worker_sec", "working_sec")
            ratios = {what: said[what] / done[what] for what in compared}
            ratios |= {stage: said["stage_sec"][stage] / done["stage_sec"][stage] for stage in STAGES}
            result["cases"][name] = {"said": said, "done": done, "said / done": ratios}
            print(f"{name}: " + ", ".join(f"{what} {ratio:.3f}" for what, ratio in ratios.items()), flush=True)
    if given.output != "-":
        Path(given.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
