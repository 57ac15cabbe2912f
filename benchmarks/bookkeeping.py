"""What shards and rows cost outside the model: commit, resume, manifest, driver memory, index. For docs/scaling.md.

    python benchmarks/bookkeeping.py                         benchmarks/results/bookkeeping.json
    python benchmarks/bookkeeping.py --shards 100000 --rows 1000000 --output benchmarks/results/bookkeeping-large.json
    python benchmarks/bookkeeping.py --shards 500 --rows 20000 --output -

Every measurement is checked by its result first: nothing pending, every shard in the manifest, every image in a shard.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, which holds a file by the name of a standard module (selectors).
sys.path[0] = str(ROOT)

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.memory import peak_bytes
from benchmarks.ops import environment
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Generation
from pipeline.index.assign import THREADS, assign_shards
from pipeline.index.build import SHARDS_PER_FILE
from pipeline.storage import LocalStore
from schemas.columns import table_of
from schemas.records import CommitRecord, FileEntry
from schemas.samples import Prompt, Sample

FILES = {
    "selections": "selections/part-{:08d}.parquet",
    "prompts": "prompts/part-{:08d}.parquet",
    "errors": "errors/part-{:08d}.parquet",
    "features.webdataset": "features/shard-{:08d}.tar",
    "payloads": "payloads/part-{:08d}.parquet",
}
WORDS = ("what", "colour", "is", "the", "small", "thing", "left", "of", "big", "one", "on", "table", "how", "many", "?")
STAGES = ("read", "decode", "encode", "score", "select", "write")


def measure_shards(shards: int, root: Path) -> dict[str, Any]:
    """Cost of a shard in commit, resume and manifest, on a local disk, with tiny data files."""
    artifact = Artifact(root)
    for name in FILES.values():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    records = []
    for shard in range(shards):
        entries = {}
        for table, name in FILES.items():
            path = root / name.format(shard)
            path.write_bytes(b"x")
            digest = hashlib.sha256(b"x").hexdigest()
            entries[table] = FileEntry(name.format(shard), 512, 1, str(path.stat().st_mtime_ns), digest)
        counts = {"images": 512, "samples": 512, "samples.ok": 512, "prompts": 2560, "prompts.ok": 2560}
        seconds = dict.fromkeys(STAGES, 1.234567)
        records.append(CommitRecord(shard, entries, counts, seconds, 1.7e9 + shard / 7, 1.7e9 + shard / 6))
    started = time.perf_counter()
    for record in records:
        artifact.commit(record)
    commit = time.perf_counter() - started
    started = time.perf_counter()
    resume = artifact.resume(shards)
    resuming = time.perf_counter() - started
    assert resume.pending == []
    started = time.perf_counter()
    artifact.finish({"num_shards": shards})
    finish = time.perf_counter() - started
    manifest = root / "manifest.json"
    assert len(json.loads(manifest.read_text())["shards"]) == shards
    tracemalloc.start()
    artifact.finish({"num_shards": shards})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "shards": shards,
        "commit_ms": 1000 * commit / shards,
        "resume_ms": 1000 * resuming / shards,
        "finish_ms": 1000 * finish / shards,
        "finish_peak_memory_bytes": peak / shards,
        "commit_record_bytes": sum(path.stat().st_size for path in (root / "_commits").iterdir()) / shards,
        "manifest_bytes": manifest.stat().st_size / shards,
    }


class Measured(LocalStore):
    """A store that notes how much lay in its scratch folder at the end."""

    scratch_bytes = 0

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with super().scratch() as folder:
            yield folder
            self.scratch_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_index(rows: int, prompts: int, root: Path) -> dict[str, Any]:
    """Cost of a row in the assignment of images to shards, and in the index's files."""
    store = Measured(root)
    units = []
    for begin in range(0, rows, 10_000):
        unit = [_scan_row(number, prompts) for number in range(begin, min(begin + 10_000, rows))]
        units.append(f"scan/unit-{begin // 10_000:08d}.parquet")
        with store.new_file(units[-1]) as new:
            pq.write_table(table_of(Sample, unit), new.path)
    nothing = Generation.of_nothing(
        "/data/corpus", [], first_input=0, first_shard=0, first_file=0, shards_per_file=SHARDS_PER_FILE
    )
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:  # so that its memory is its own
        cpu, wall, peak, made, scratch_bytes = alone.submit(_assigned, store, units, nothing).result()
    assert made.num_images == rows
    assert made.num_prompts == rows * prompts
    return {
        "rows": rows,
        "prompts_a_row": prompts,
        "assign_cpu_sec_a_million": 1e6 * cpu / rows,
        "assign_sec_a_million": 1e6 * wall / rows,
        "assign_threads": THREADS,
        "assign_peak_memory_bytes": peak,
        "index_bytes": sum(entry.size_bytes for entry in store.list("_index/")) / rows,
        "scan_bytes": sum(entry.size_bytes for entry in store.list("scan/")) / rows,
        "scratch_database_bytes": scratch_bytes / rows,
    }


def _assigned(store: Measured, units: list[str], nothing: Generation) -> tuple[float, float, int, Generation, int]:
    """Processor and wall seconds, the process's memory at its peak, the generation, the bytes of its scratch folder."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = assign_shards(store, units, [], nothing, shard_size=512, limit=None, bound=None)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu, wall, peak_bytes(), made, store.scratch_bytes


def _scan_row(number: int, prompts: int) -> Sample:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return Sample(
        input=number // 10_000,
        sample=number % 10_000 * 20_480,
        source=f"train-{number // 10_000:06d}.tar/{digest[:12]}.jpg",
        path=f"/data/corpus/train-{number // 10_000:06d}.tar",
        offset=number % 10_000 * 20_480 + 512,
        size=18_000 + int(digest[:4], 16) % 4000,
        image_id=digest,
        prompts=[
            Prompt(
                prompt_id=f"{digest[12:20]}-{n}",
                prompt=" ".join(WORDS[int(digest[3 * k + n : 3 * k + n + 2], 16) % len(WORDS)] for k in range(9)),
                references=["yes"],
                type="vqa",
                status="ok",
            )
            for n in range(prompts)
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shards", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/bookkeeping.json"), help="- for none")
    given = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(torch.device("cpu"))}
    with tempfile.TemporaryDirectory(prefix="bookkeeping-") as folder:
        result["shard"] = measure_shards(given.shards, Path(folder) / "artifact")
        result["row"] = [measure_index(given.rows, n, Path(folder) / f"index-{n}") for n in (1, 5)]
    print(json.dumps(result, indent=1))
    if given.output != "-":
        Path(given.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
