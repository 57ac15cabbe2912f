"""The pipeline against a bare loop on the same images, cores and mini-batches; and two workers against two bare loops.

    python benchmarks/throughput.py                          5,000 images, benchmarks/results/throughput.json
    python benchmarks/throughput.py --images 1000 --repeats 1 --output -

Both sides run as processes of their own, by turns, one compute thread a model. The clock runs from the first model
batch to the last commit (the last file of the bare loop); what lies before is start-up, stated apart. First of all the
bare loop's files must equal the pipeline's, byte for byte.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(ROOT)

import argparse
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from statistics import median
from typing import Any

import torch

from benchmarks.ops import environment
from benchmarks.synthetic import make_corpus

TABLES = ("selections", "prompts", "errors", "features")
MODEL = "examples/tiny-llava"


def run_pipeline(corpus: str, output: Path, given: argparse.Namespace, workers: int) -> dict[str, Any]:
    """One prune job as a user runs it; its times from its own commit records."""
    command = [
        sys.executable, "-m", "jobs.prune_corpus", "--corpus", corpus, "--model", MODEL, "--output", str(output),
        "--max-tokens", given.max_tokens, "--shard-size", str(given.shard_size), "--batch-size", str(given.batch_size),
        "--workers", str(workers),
    ]  # fmt: skip
    started = time.time()
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    ended = time.time()
    records = [json.loads(path.read_text()) for path in sorted((output / "_commits").glob("*.json"))]
    began, committed = min(r["began"] for r in records), max(r["committed"] for r in records)
    stages = {name: sum(r["seconds"][name] for r in records) for name in records[0]["seconds"]}
    return {
        "images": sum(r["files"]["selections"]["rows"] for r in records),
        "start_up_sec": began - started,
        "working_sec": committed - began,
        "ending_sec": ended - committed,
        "stage_sec": stages,
    }


def run_bare(index: Path, output: Path, given: argparse.Namespace, processes: int, shards: int) -> dict[str, Any]:
    """Bare loops side by side, each on its share of the shards; begun together."""
    cuts = [round(n * shards / processes) for n in range(processes + 1)]
    started = time.time()
    running = [
        subprocess.Popen(
            [
                sys.executable, "benchmarks/bare_loop.py", "--index", str(index), "--model", MODEL,
                "--output", str(output), "--max-tokens", given.max_tokens, "--batch-size", str(given.batch_size),
                "--shards", f"{first}:{end}",
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for first, end in itertools.pairwise(cuts)
    ]  # fmt: skip
    results = []
    for process in running:
        text, _ = process.communicate()
        assert process.returncode == 0, "the bare loop failed"
        results.append(json.loads(text))
    began, ended = min(r["began"] for r in results), max(r["ended"] for r in results)
    return {
        "images": sum(r["images"] for r in results),
        "start_up_sec": began - started,
        "working_sec": ended - began,
        "stage_sec": {name: sum(r["seconds"][name] for r in results) for name in results[0]["seconds"]},
    }


def files_of(output: Path) -> dict[str, bytes]:
    return {f"{table}/{path.name}": path.read_bytes() for table in TABLES for path in (output / table).glob("[!.]*")}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the repeats."""
    rates = [run["images"] / run["working_sec"] for run in runs]
    return {
        "images_per_sec": median(rates),
        "images_per_sec_each": rates,
        **{name: median(run[name] for run in runs) for name in ("start_up_sec", "working_sec")},
        "stage_sec": {name: median(run["stage_sec"][name] for run in runs) for name in runs[0]["stage_sec"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-tokens", default="64")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="how many side by side (default 1 2)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/throughput.json"), help="- for none")
    given = parser.parse_args()
    result: dict[str, Any] = {
        "environment": environment(torch.device("cpu")),
        "settings": {n: v for n, v in vars(given).items() if n != "output"},
    }
    result["environment"]["cpus"] = os.cpu_count()
    result["environment"]["threads"] = 1
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        work = Path(folder)
        corpus = make_corpus(work / "corpus", given.images)
        reference = work / "reference"
        run_pipeline(corpus, reference, given, 1)  # also warms the file cache for both sides
        expected = files_of(reference)
        shards = len(list((reference / "_commits").glob("*.json")))
        runs: dict[str, list[dict[str, Any]]] = {}
        for repeat in range(given.repeats):
            for workers in given.workers:
                for side in ("pipeline", "bare")[:: 1 if repeat % 2 else -1]:
                    output = work / "out"
                    if side == "pipeline":
                        run = run_pipeline(corpus, output, given, workers)
                    else:
                        run = run_bare(reference / "_index", output, given, workers, shards)
                    assert run["images"] == given.images
                    assert files_of(output) == expected, f"{side} with {workers} workers wrote other bytes"
                    shutil.rmtree(output)
                    runs.setdefault(f"{side}, {workers}", []).append(run)
                    print(f"{side} x {workers}: {given.images / run['working_sec']:.1f} images/s, "
                          f"start-up {run['start_up_sec']:.1f} s", flush=True)  # fmt: skip
    result["runs_with_identical_files"] = sum(len(some) for some in runs.values())  # asserted after each
    result["runs"] = {name: summary(some) for name, some in runs.items()}
    rate = {name: value["images_per_sec"] for name, value in result["runs"].items()}
    result["ratios"] = {f"pipeline / bare, {n}": rate[f"pipeline, {n}"] / rate[f"bare, {n}"] for n in given.workers}
    for n in given.workers[1:]:
        first = given.workers[0]
        for side in ("pipeline", "bare"):
            result["ratios"][f"{side}, {n} / {first}"] = rate[f"{side}, {n}"] / rate[f"{side}, {first}"]
    print(json.dumps(result["runs"] | {"ratios": result["ratios"]}, indent=1))
    if given.output != "-":
        Path(given.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
