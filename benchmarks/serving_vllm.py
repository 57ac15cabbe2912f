"""The row of benchmarks/serving.py about vLLM: on pictures and on an artifact, each in a process of its environment."""

import json
import os
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving_bench import PRUNE, UNTOUCHED, Bench, Case
from benchmarks.serving_in_vllm import ARTIFACT, BLOCK, MARK, PICTURES

ROOT = Path(__file__).parents[1]


class VllmSide:
    """A process of vLLM's environment that answers the same prompts, see benchmarks/serving_in_vllm.py."""

    def __init__(self, python: str, kind: str, model: str, source: Path, new_tokens: int, prompts: int, threads: int):
        command = [python, str(ROOT / "benchmarks/serving_in_vllm.py"), kind, model, str(source)]
        self._process = subprocess.Popen(
            [*command, str(new_tokens), str(prompts)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._said()["loaded"]

    def turn(self) -> dict[str, Any]:
        """Answer everything once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._said()

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
        raise SystemExit(f"vLLM's side ended with status {self._process.wait()}; it said why above")


def time_vllm(bench: Bench, case: Case, found: dict[str, dict[str, Any]], python: str, repeats: int) -> dict[str, Any]:
    """Pictures and the artifact by turns, the answers compared with Transformers'.

    Args:
        case: answering from the artifact, already timed.
        found: what was timed.
        python: interpreter of the environment.
        repeats: turns of each that count, after one that does not.

    Raises:
        AssertionError: more than one answer in twenty differs.
    """
    sources = {PICTURES: bench.manifest(case.work), ARTIFACT: bench.ours(case).output}
    sides = {
        kind: VllmSide(python, kind, bench.model, source, case.work.new_tokens, bench.limits.prompts, bench.threads)
        for kind, source in sources.items()
    }
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in sides}
    for repeat in range(repeats + 1):
        for kind, side in list(sides.items())[:: -1 if repeat % 2 else 1]:
            turns[kind].append(side.turn())
            print(f"vLLM, {kind}: {turns[kind][-1]['wall_sec']:.2f} s", flush=True)
    for side in sides.values():
        side.end()
    ours = {PICTURES: bench.turn(Case(UNTOUCHED, case.work)).answers, ARTIFACT: bench.turn(case).answers}
    equal = {kind: sum(turns[kind][0]["answers"][name] == ours[kind][name] for name in ours[kind]) for kind in sides}
    assert min(equal.values()) >= 0.95 * case.work.answers, f"vLLM answers otherwise than Transformers: {equal}"
    sec, cpu = (
        {kind: median(turn[measure] for turn in some[1:]) for kind, some in turns.items()}
        for measure in ("wall_sec", "cpu_sec")
    )
    cached = {kind: some[-1]["cached_tokens"] for kind, some in turns.items()}
    for kind, tokens in ((PICTURES, bench.dims.visual_tokens), (ARTIFACT, case.tokens)):
        least = (case.work.answers - case.work.images) * (tokens // BLOCK * BLOCK)
        assert cached[kind] >= least, f"vLLM, {kind}: prompts about an image do not share its tokens: {cached[kind]:,}"
    pruning = found[Case(PRUNE, case.work, case.tokens).name]["sec"]
    return {
        "version": sides[ARTIFACT].version,
        "images": case.work.images, "prompts": case.work.prompts, "new_tokens": case.work.new_tokens,
        "tokens": case.tokens, "answers": case.work.answers, "sec": sec, "cpu_sec": cpu,
        "cached_tokens": cached,
        "times": sec[PICTURES] / sec[ARTIFACT], "times_by_cpu": cpu[PICTURES] / cpu[ARTIFACT],
        "times_with_pruning": sec[PICTURES] / (sec[ARTIFACT] + pruning),
        "equal from pictures": equal[PICTURES], "equal from the artifact": equal[ARTIFACT],
    }  # fmt: skip
