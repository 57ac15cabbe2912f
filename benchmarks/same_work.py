"""Does another checkout of this project do the same work? Its outputs compared with this one's, and its speed.

    git worktree add ../before <commit>
    python benchmarks/same_work.py --other ../before                the bundled corpus, every output
    python benchmarks/same_work.py --other ../before --images 2000  and the speed of both, three runs each by turns

Selections, prompts, errors and features must be equal byte for byte, answers in every column but `seconds`. Speed is
taken from the commit records: images between the first model batch and the last commit.
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
import shutil
import subprocess
import tempfile
import time
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.ops import environment
from benchmarks.synthetic import make_corpus

CORPUS = "examples/scenes/scenes-{000000..000002}.tar"
MODEL = "examples/tiny-llava"
BUDGETS = ("all", "32")
TABLES = ("selections", "prompts", "errors", "features")
FORMS = (  # of the bundled corpus: between them they reach every table, form and option that decides bytes
    ("all", "--max-tokens", "all", "--features", "both"),
    ("int8", "--max-tokens", "0.25", "--feature-dtype", "int8", "--selector", "divprune"),
    ("random", "--max-tokens", "40", "--selector", "random", "--seed", "3", "--batch-size", "5"),
    ("manifest", "--max-tokens", "64", "--corpus", "examples/scenes/scenes.jsonl", "--estimator", "directional"),
)


def run(checkout: Path, *arguments: str) -> None:
    """Run one job of a checkout, quietly unless it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(arguments)} ended with status {done.returncode}\n{done.stderr}")


def prune(checkout: Path, output: Path, *options: str, corpus: str = CORPUS) -> None:
    """Run the prune job."""
    named = () if "--corpus" in options else ("--corpus", corpus)
    run(checkout, "jobs.prune_corpus", *named, "--model", MODEL, "--output", str(output), *options)


def files_of(output: Path) -> dict[str, bytes]:
    """Bytes of every finished file of the artifact's tables."""
    return {f"{table}/{path.name}": path.read_bytes() for table in TABLES for path in (output / table).glob("[!.]*")}


def answers_of(output: Path) -> pa.Table:
    """All answers, without their seconds."""
    parts = sorted((output / "answers").glob("[!.]*"))
    return pa.concat_tables(pq.read_table(part) for part in parts).drop_columns(["seconds"])


def compare_outputs(checkouts: tuple[Path, Path], work: Path) -> dict[str, int]:
    """Run everything in both checkouts and count what was compared; stops at the first difference."""
    compared = {"files": 0, "answers": 0}
    for name, *options in FORMS:
        outputs = [work / side / name for side in ("this", "other")]
        for checkout, output in zip(checkouts, outputs, strict=True):
            prune(checkout, output, *options, "--shard-size", "64")
        this, other = map(files_of, outputs)
        if this.keys() != other.keys():
            raise SystemExit(f"{name}: only one side has {sorted(this.keys() ^ other.keys())}")
        different = sorted(file for file in this if this[file] != other[file])
        if different:
            raise SystemExit(f"{name}: {len(different)} of {len(this)} files differ, e.g. {different[0]}")
        compared["files"] += len(this)
    for budget in BUDGETS:
        tables = []
        for checkout, side in zip(checkouts, ("this", "other"), strict=True):
            output = work / side / f"answers-{budget}"
            run(checkout, "jobs.answer_corpus", "--pruned", str(work / side / "all"), "--model", MODEL,
                "--tokens", budget, "--output", str(output))  # fmt: skip
            tables.append(answers_of(output))
        if tables[0].schema != tables[1].schema:
            raise SystemExit(f"answers at {budget} tokens have other columns: {tables[0].schema} / {tables[1].schema}")
        if not tables[0].equals(tables[1]):
            columns = [name for name in tables[0].column_names if not tables[0][name].equals(tables[1][name])]
            raise SystemExit(f"answers at {budget} tokens differ in {', '.join(columns) or 'their number'}")
        compared["answers"] += len(tables[0])
    return compared


def rate_of(output: Path) -> float:
    """Images a second from the first model batch to the last commit."""
    records = [json.loads(path.read_text()) for path in (output / "_commits").glob("*.json")]
    images = sum(record["files"]["selections"]["rows"] for record in records)
    return float(images / (max(r["committed"] for r in records) - min(r["began"] for r in records)))


def compare_speed(checkouts: tuple[Path, Path], work: Path, images: int, repeats: int) -> dict[str, Any]:
    """Both checkouts by turns on one corpus; the first run of each only warms the file cache and is checked."""
    corpus = make_corpus(work / "corpus", images)
    rates: dict[str, list[float]] = {"this": [], "other": []}
    seconds: dict[str, list[float]] = {"this": [], "other": []}
    expected: dict[str, bytes] = {}
    for turn in range(repeats + 1):
        for side, checkout in list(zip(("this", "other"), checkouts, strict=True))[:: 1 if turn % 2 else -1]:
            output = work / "out"
            started = time.perf_counter()
            prune(checkout, output, "--shard-size", "128", "--workers", "1", corpus=corpus)
            wall = time.perf_counter() - started
            expected = expected or files_of(output)
            if files_of(output) != expected:
                raise SystemExit(f"{side}: other bytes in turn {turn}")
            if turn:
                rates[side].append(rate_of(output))
                seconds[side].append(wall)
                print(f"{side}: {rates[side][-1]:.1f} images/s, {wall:.1f} s in all", flush=True)
            shutil.rmtree(output)
    return {
        "images_per_sec": rates,
        "wall_sec": seconds,
        "this / other, median images per second": median(rates["this"]) / median(rates["other"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--other", required=True, type=Path, help="the checkout to compare with")
    parser.add_argument("--images", type=int, default=0, help="of the comparison of speed (default: 0, none)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="-", help="JSON file of the result (default: none)")
    given = parser.parse_args()
    checkouts = (ROOT, given.other.resolve())
    commits = [
        subprocess.run(["git", "describe", "--always", "--dirty"], cwd=one, capture_output=True, text=True).stdout
        for one in checkouts
    ]
    result: dict[str, Any] = {
        "environment": environment(torch.device("cpu")),
        "this": commits[0].strip(),
        "other": commits[1].strip(),
    }
    with tempfile.TemporaryDirectory(prefix="same-work-") as folder:
        result["equal"] = compare_outputs(checkouts, Path(folder))
        print(f"equal: {result['equal']['files']} files byte for byte, {result['equal']['answers']:,} answers")
        if given.images:
            result["speed"] = compare_speed(checkouts, Path(folder), given.images, given.repeats)
            print(f"this / other: {result['speed']['this / other, median images per second']:.3f}")
    if given.output != "-":
        Path(given.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
