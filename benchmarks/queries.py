"""How long opening and recipes take over a large artifact, and in how much memory. For docs/scaling.md.

    python benchmarks/queries.py                              benchmarks/results/queries.json
    python benchmarks/queries.py --shards 40 --output -       the same with a fiftieth of the rows

A made artifact (`made_artifact`) and two runs of answers over it are written into a temporary folder and removed
afterwards: by default a million images with all of their 256 tokens ranked, and 10 million prompts that are answered at
all tokens and at 64. Each recipe runs in a process of its own, whose memory is measured; what it tells of counts is
compared with what was made. Files were written just before, so they come out of the page cache.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, which holds a file by the name of a standard module (selectors).
sys.path[0] = str(ROOT)

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

from benchmarks.made_artifact import Form, Made, make_artifact
from benchmarks.memory import peak_bytes
from pipeline.report.recipe import SUMMARIES, recipe_names, recipe_of

MEMORY_GIB = 1.0  # DuckDB's; the process also holds Arrow's buffers, the commit records and the libraries
LIMITS = {"opening_sec": 2.0, "summaries_sec": 2.0, "tokens_sec": 60.0, "peak_memory_bytes": 2e9}


def measure(form: Form, root: Path, names: Sequence[str]) -> dict[str, Any]:
    """Make the artifact, then the cache, then run these recipes."""
    started = time.perf_counter()
    made = make_artifact(root, form)
    making = time.perf_counter() - started
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    cache = root / "cache"
    gathering = _alone(_cook, form, made, cache, "overview")
    assert gathering["said"], "nothing was gathered: the artifact is too small for a cache"
    rows = [{"recipe": name, **_alone(_cook, form, made, cache, name)} for name in names]
    assert not any(row.pop("said") for row in rows), "the cache is there"
    return {
        "form": asdict(form) | {"images": form.images, "prompts": form.prompts, "answers": form.prompts * 2},
        "artifact_bytes": size,
        "making_sec": making,
        "threads": os.cpu_count(),
        "duckdb_memory_gib": MEMORY_GIB,
        "gathering_sec": gathering["opening_sec"],
        "gathering_peak_memory_bytes": gathering["peak_memory_bytes"],
        "cache_bytes": sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()),
        "recipes": rows,
    }


def _alone(work: Any, *arguments: Any) -> Any:
    """In a process of its own, so that its memory is."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(work, *arguments).result()


def _cook(form: Form, made: Made, cache: Path, name: str) -> dict[str, Any]:
    from pipeline.report.cache import SummaryCache
    from pipeline.report.query import connect
    from pipeline.report.recipe import cook

    recipe = recipe_of(name)
    said: list[str] = []
    kept = SummaryCache(str(cache), said.append, worth=0) if recipe.reads == SUMMARIES else None
    started = time.perf_counter()
    db = connect(made.pruned, made.answers, memory_gib=MEMORY_GIB, summaries=kept)
    opened = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    rows = cook(db, recipe).to_pylist()
    done = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF)
    _check(name, rows, form)
    return {
        "reads": recipe.reads,
        "opening_sec": opened - started,
        "recipe_sec": done - opened,
        "recipe_cpu_sec": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
        "peak_memory_bytes": peak_bytes(),
        "rows": len(rows),
        "said": said,
    }


def _check(name: str, rows: list[dict[str, Any]], form: Form) -> None:
    """What a recipe tells of counts is what was made."""
    if name == "overview":
        (row,) = rows
        assert (row["images"], row["prompts"], row["shards"]) == (form.images, form.prompts, form.shards)
        assert row["kept"] == form.images * form.kept
    elif name in ("image_sizes", "cut_ties"):
        assert sum(row["images"] for row in rows) == form.images
    elif name == "prompts_by_type":
        assert sum(row["prompts"] for row in rows) == form.prompts
    elif name == "kept_grid":
        assert sum(row["images"] for row in rows) == 64 * form.images
    elif name == "sensitivity_grid":
        assert len(rows) == form.tokens
        assert 0.03 * form.images < rows[0]["images"] < 0.07 * form.images
    elif name == "agreement":
        assert 0.98 * form.prompts < sum(row["prompts"] for row in rows) < form.prompts
    assert rows, f"{name} shows nothing"


def over(result: dict[str, Any]) -> list[str]:
    """What is over the limits, a line each."""
    lines = []
    for row in result["recipes"]:
        limits = {
            "opening_sec": LIMITS["opening_sec"],
            "recipe_sec": LIMITS["summaries_sec" if row["reads"] == SUMMARIES else "tokens_sec"],
            "peak_memory_bytes": LIMITS["peak_memory_bytes"],
        }
        lines += [
            f"{row['recipe']}: {key} {row[key]:.4g} > {most:g}" for key, most in limits.items() if row[key] > most
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--images", type=int, default=500, help="a shard (default: 500)")
    parser.add_argument("--prompts", type=int, default=10, help="an image (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None, help="where the artifact is made (default: the temporary folder)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/queries.json"), help="- for none")
    given = parser.parse_args()
    form = Form(given.shards, given.images, given.prompts, seed=given.seed)
    with tempfile.TemporaryDirectory(prefix="queries-", dir=given.folder) as folder:
        result = measure(form, Path(folder), recipe_names())
    result["over"] = over(result)
    if given.output != "-":
        import torch

        from benchmarks.ops import environment

        result = {"environment": environment(torch.device("cpu")), **result}
        Path(given.output).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "recipes"}, indent=1))
    for row in result["recipes"]:
        print(
            f"{row['recipe']:<22}{row['reads']:<16}{row['opening_sec']:6.2f} s {row['recipe_sec']:7.2f} s "
            f"{row['recipe_cpu_sec']:7.2f} CPU-s {row['peak_memory_bytes'] / 1e6:8.0f} MB"
        )
    sys.exit("\n".join(result["over"]) or 0)


if __name__ == "__main__":
    main()
