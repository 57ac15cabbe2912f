"""Time and memory of the operations, at the shapes of real models with random weights.

    python benchmarks/ops.py                         all tables, benchmarks/results/ops.json
    python benchmarks/ops.py --only rank             one table anew; the others in that file stay as they are

Every table first checks the fast operation against its literal twin. A ratio is taken between medians of one run. On a
CUDA device (`--device cuda`, the default where there is one) the same tables gain bfloat16 rows.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(ROOT)

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import forget_peak, peak_bytes, resident_bytes
from zoo_ops import (
    CENTERED,
    SELECTORS,
    NormSpec,
    ProjectorSpec,
    class_attention,
    draw_directions,
    estimate_sensitivity,
    rank_tokens,
    spearman,
)
from zoo_ops.constants import clear_constants, projector_constants
from zoo_ops.naive import class_attention_naive, finite_difference_naive, rank_naive, rank_published

DIRECTIONS = 64
# The literal estimator runs this many of the 64 directions where all of them would take minutes; its time is linear
# in them, which the LLaVA-1.5 row checks by running all.
LITERAL_DIRECTIONS = 8
# tokens, groups, patches, width of a patch, hidden width, output width, kept tokens
SHAPES = {
    "LLaVA-1.5": (576, 1, 1, 1024, 4096, 4096, 64),
    "LLaVA-NeXT": (2880, 5, 1, 1024, 4096, 4096, 640),
    "Qwen2.5-VL": (1024, 1, 4, 1280, 5120, 3584, 205),
}
# `random` and `uniform_grid` read no feature.
SCORED = tuple(name for name in SELECTORS if name not in ("random", "uniform_grid"))


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and command of this run."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "cpu": model,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "load_1min": Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class Run:
    """How one run measures. clock "cpu" counts the processor time of all threads: on a busy machine, with one thread,
    ratios of it still hold."""

    device: torch.device
    dtypes: Sequence[torch.dtype]
    repeats: int
    clock: Callable[[], float]

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of one run of `work`."""
        self._wait()
        start = self.clock()
        work()
        self._wait()
        return self.clock() - start

    def seconds(self, work: Callable[[], Any], repeats: int | None = None) -> float:
        """Median seconds of `work`, after one run that does not count."""
        self.once(work)
        return median(self.once(work) for _ in range(repeats or self.repeats))

    def slow(self, work: Callable[[], Any]) -> float:
        """Seconds of work that takes many of them: one run on a CPU, without another to warm up."""
        return self.seconds(work, 1) if self.device.type == "cuda" else self.once(work)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def make_projector(
    shape: str, device: torch.device, dtype: torch.dtype = torch.float32, *, narrow: int = 1
) -> ProjectorSpec:
    """A projector of a shape, all its widths divided by `narrow`."""
    _, _, patches, *widths, _ = SHAPES[shape]
    width, hidden, width_out = (one // narrow for one in widths)
    torch.manual_seed(0)
    first = nn.Linear(patches * width, hidden).to(device, dtype)
    second = nn.Linear(hidden, width_out).to(device, dtype)
    norm = None
    if patches > 1:
        norm = NormSpec("rms", torch.rand(width).add(0.5).to(device, dtype))
    return ProjectorSpec(first, nn.GELU(), second, norm=norm, num_patches=patches)


def make_features(
    shape: str, batch: int, device: torch.device, dtype: torch.dtype = torch.float32, *, narrow: int = 1
) -> Tensor:
    """Features of a batch of images of a shape, their width divided by `narrow`."""
    tokens, _, patches, width, *_ = SHAPES[shape]
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(batch, tokens, patches * (width // narrow), generator=generator)
    # Tokens of unlike scale, as a tower gives them.
    return (rows * torch.rand(batch, tokens, 1, generator=generator).add(0.5)).to(device, dtype)


def literal(features_BND: Tensor, spec: ProjectorSpec, directions: int) -> Tensor:
    bank = draw_directions(DIRECTIONS, features_BND.shape[-1], seed=0)[:directions].to(features_BND)
    return torch.stack([finite_difference_naive(image, spec, bank) for image in features_BND])


def sensitivity_table(run: Run) -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        for dtype in run.dtypes:
            spec = make_projector(shape, run.device, dtype)
            clear_constants()
            make_constants = partial(projector_constants, spec, dtype=torch.float32, purpose="jacobian")
            once = run.once(make_constants)
            check = agreement_with_the_literal(spec, make_features(shape, 1, run.device))
            for batch in (1, 8):
                x = make_features(shape, batch, run.device, dtype)
                row: dict[str, Any] = {"shape": shape, "dtype": str(dtype).split(".")[1], "batch": batch, **check}
                row["constants_once_sec"] = once
                row["projection_sec"] = run.seconds(partial(spec, x))
                row["closed_form_sec"] = run.seconds(partial(estimate_sensitivity, x, spec))
                # float32 whatever the model runs in: in half precision the published form is not itself.
                plain = make_projector(shape, run.device)
                part = run.slow(partial(literal, x[:1].float(), plain, LITERAL_DIRECTIONS)) * batch
                row["literal_sec"] = part * DIRECTIONS / LITERAL_DIRECTIONS
                if shape == "LLaVA-1.5" and batch == 1:
                    row["literal_all_directions_sec"] = run.slow(partial(literal, x.float(), plain, DIRECTIONS))
                    row["literal_sec"] = row["literal_all_directions_sec"]
                if batch == 1:
                    directional = partial(
                        estimate_sensitivity, x, spec, estimator="directional", num_directions=DIRECTIONS
                    )
                    row["directional_sec"] = run.slow(directional)
                    row["literal_per_directional"] = row["literal_sec"] / row["directional_sec"]
                row["literal_per_closed_form"] = row["literal_sec"] / row["closed_form_sec"]
                row["closed_form_per_projection"] = row["closed_form_sec"] / row["projection_sec"]
                rows.append(row)
                show(row)
    return rows


def agreement_with_the_literal(spec: ProjectorSpec, x: Tensor) -> dict[str, float]:
    """On 63 tokens: finite_difference has the literal values, directional is near them, closed_form orders alike."""
    x = x[:, :63].float()
    dtype = spec.parameters[0].dtype
    plain = spec if dtype == torch.float32 else ProjectorSpec.opaque(lambda rows: spec.project(rows, dtype=rows.dtype))
    expected = torch.stack([finite_difference_naive(x[0], plain, draw_directions(4, x.shape[-1], seed=0).to(x))])
    errors = {}
    for name in ("finite_difference", "directional"):
        value = estimate_sensitivity(x, spec, estimator=name, num_directions=4)
        errors[name] = float(((value - expected) / expected).abs().max())
        assert errors[name] <= 1e-3, f"{name} is {errors[name]} off the literal twin"
    exact = estimate_sensitivity(x.double(), _in_double(spec))
    correlation = float(spearman(torch.stack([estimate_sensitivity(x, spec)[0].double(), exact[0]]))[0, 1])
    assert correlation >= 0.9999, f"closed_form in float32 orders unlike float64: {correlation}"
    return {"finite_difference_error": errors["finite_difference"], "closed_form_spearman_float64": correlation}


def _in_double(spec: ProjectorSpec) -> ProjectorSpec:
    assert spec.linear_in is not None
    assert spec.linear_out is not None
    layers = []
    for linear in (spec.linear_in, spec.linear_out):
        copy = nn.Linear(linear.in_features, linear.out_features, dtype=torch.float64, device=linear.weight.device)
        copy.load_state_dict(linear.state_dict())
        layers.append(copy)
    norm = spec.norm
    if norm is not None and norm.weight is not None:
        norm = NormSpec(norm.kind, norm.weight.double(), None, norm.eps, norm.per_patch)
    return ProjectorSpec(layers[0], spec.activation, layers[1], norm=norm, num_patches=spec.num_patches)


def rank_table(run: Run) -> list[dict[str, Any]]:
    rows = []
    for shape, (tokens, groups, _, _, _, width, kept) in SHAPES.items():
        small = torch.randn(63, width, dtype=torch.float64, device=run.device)
        weights = torch.rand(63, dtype=torch.float64, device=run.device)
        picks, _ = rank_naive(small.cpu(), weights.cpu(), max_tokens=40)
        assert rank_tokens(small[None], weights[None], max_tokens=40).indices_BK[0].tolist() == picks
        for dtype in run.dtypes:
            for batch in (1, 8):
                generator = torch.Generator().manual_seed(2)
                z = torch.randn(batch, tokens, width, generator=generator) + torch.randn(width, generator=generator)
                z, s = z.to(run.device, dtype), torch.rand(batch, tokens, generator=generator).to(run.device)
                ids = torch.arange(tokens, device=run.device).expand(batch, -1) // (tokens // groups)
                group_ids = ids if groups > 1 else None
                row: dict[str, Any] = {"shape": shape, "dtype": str(dtype).split(".")[1], "batch": batch}
                row |= {"tokens": tokens, "kept": kept, "groups": groups}
                rank = partial(rank_tokens, z, s, max_tokens=kept, groups_BN=group_ids)
                row["rank_sec"] = run.seconds(rank)
                if shape == "LLaVA-1.5" and batch == 1:
                    # Its cosines 32 rows at a time are kinder to it: they stay in the cache. The ratio is to that form;
                    # the whole broadcast, as published, only where it fits.
                    published = partial(rank_published, z[0].float(), s[0], max_tokens=kept)
                    theirs: list[Tensor] = []
                    row["published_in_parts_sec"] = run.slow(
                        partial(keep_result, theirs, partial(published, rows_at_a_time=32))
                    )
                    if free_bytes(run.device) > 3.5 * tokens * tokens * width * 4:
                        row["published_sec"] = run.slow(partial(keep_result, theirs, published))
                    for picks in theirs:
                        assert picks.tolist() == rank().indices_BK[0].tolist(), "the published form keeps other tokens"
                    row["published_in_parts_per_rank"] = row["published_in_parts_sec"] / row["rank_sec"]
                rows.append(row)
                show(row)
    return rows


def keep_result(results: list[Tensor], work: Callable[[], Tensor]) -> None:
    results.append(work())


def selectors_table(run: Run) -> list[dict[str, Any]]:
    """Ranking alone, by every selector that scores tokens; the centred ones as the family of the shape does it."""
    rows = []
    for shape, (tokens, groups, patches, width, _, width_out, kept) in SHAPES.items():
        generator = torch.Generator().manual_seed(3)
        z = torch.randn(1, tokens, width_out, generator=generator) + torch.randn(width_out, generator=generator)
        z, s = z.to(run.device), torch.rand(1, tokens, generator=generator).to(run.device)
        means = torch.randn(1, tokens, width, generator=generator).to(run.device) if patches > 1 else None
        ids = torch.arange(tokens, device=run.device)[None] // (tokens // groups) if groups > 1 else None
        for selector in SCORED:
            agrees_with_its_twin(selector, patches > 1)
            rank = partial(rank_tokens, z, s, max_tokens=kept, selector=selector, groups_BN=ids, attention_BN=s)
            seconds = run.seconds(partial(rank, patch_means_BNd=means))
            row = {"shape": shape, "selector": selector, "tokens": tokens, "kept": kept, "groups": groups}
            rows.append(row | {"rank_sec": seconds})
            show(rows[-1])
    return rows


def agrees_with_its_twin(selector: str, by_patches: bool) -> None:
    """On 63 tokens, in float64."""
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(63, 60, dtype=torch.float64, generator=generator) + 1
    scores = torch.rand(63, dtype=torch.float64, generator=generator)
    means = (
        torch.randn(63, 19, dtype=torch.float64, generator=generator) if by_patches and selector in CENTERED else None
    )
    picks, _ = rank_naive(z, scores, max_tokens=40, selector=selector, patch_means_Nd=means)
    ranking = rank_tokens(
        z[None],
        scores[None],
        max_tokens=40,
        selector=selector,
        attention_BN=scores[None],
        patch_means_BNd=None if means is None else means[None],
    )
    assert ranking.indices_BK[0].tolist() == picks, f"{selector} keeps other tokens than its literal twin"


def share_table(run: Run) -> list[dict[str, Any]]:
    """Score and rank, by every selector that scores tokens, against encoding the same 8 images with CLIP-L/14-336.

    As the prune job does it: the sensitivity is computed, and stored, whatever the selector.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    rows = []
    for dtype in run.dtypes:
        tower: nn.Module = CLIPVisionModel(config).eval()
        tower = tower.to(run.device, dtype)
        spec = make_projector("LLaVA-1.5", run.device, dtype)
        pixels = torch.randn(8, 3, 336, 336, device=run.device).to(dtype)
        hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]
        x, z = hidden[:, 1:], spec(hidden[:, 1:])
        query, keys = hidden[:, 0].clone(), hidden.clone()
        paid = class_attention(query[:1], keys[:1, :20], num_heads=16).cpu().double()
        expected = class_attention_naive(query[:1].cpu(), keys[:1, :20].cpu(), num_heads=16)
        assert torch.allclose(paid, expected, rtol=1e-4, atol=1e-6), "class_attention is off its literal twin"

        def score_and_rank(
            selector: str, x: Tensor = x, z: Tensor = z, spec: ProjectorSpec = spec, q: Tensor = query, k: Tensor = keys
        ) -> None:
            s = estimate_sensitivity(x, spec)
            paid = class_attention(q, k, num_heads=16) if selector == "cls_attention" else None
            rank_tokens(z, s, max_tokens=64, selector=selector, attention_BN=paid)

        # By turns, so that a change of the machine's speed meets all of them.
        encode: list[float] = []
        score: dict[str, list[float]] = {selector: [] for selector in SCORED}
        run.once(partial(tower, pixels))
        for selector in SCORED:
            run.once(partial(score_and_rank, selector))
        for _ in range(max(3, run.repeats // 2)):
            encode.append(run.once(partial(tower, pixels)))
            for selector, seconds in score.items():
                seconds.append(run.once(partial(score_and_rank, selector)))
        for selector, seconds in score.items():
            row: dict[str, Any] = {"tower": "CLIP-L/14-336", "dtype": str(dtype).split(".")[1], "batch": 8}
            row |= {"selector": selector, "encode_sec": median(encode), "score_and_rank_sec": median(seconds)}
            row["share"] = row["score_and_rank_sec"] / row["encode_sec"]
            row["images_per_sec"] = 8 / row["score_and_rank_sec"]
            rows.append(row)
            show(row)
    return rows


def memory_table(run: Run) -> list[dict[str, Any]]:
    """Peak memory of score and rank at N = 2880, batch 1, beyond model, constants, features and projected features."""
    spec, x = make_projector("LLaVA-NeXT", run.device), make_features("LLaVA-NeXT", 1, run.device)
    z = spec(x)
    small = x[:, :8].clone()
    rank_tokens(spec(small), estimate_sensitivity(small, spec), max_tokens=1)
    row: dict[str, Any] = {"tokens": 2880, "batch": 1, "kept": 640}
    for name, group_ids in (("one_group", None), ("five_groups", torch.arange(2880, device=run.device)[None] // 576)):
        before = reset_peak(run.device)
        rank_tokens(z, estimate_sensitivity(x, spec), max_tokens=640, groups_BN=group_ids)
        row[f"{name}_peak_mb"] = (read_peak(run.device) - before) / 2**20
    show(row)
    return [row]


def reset_peak(device: torch.device) -> int:
    """Start a new peak; the memory held now, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    forget_peak()
    return resident_bytes()


def read_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def show(row: dict[str, Any]) -> None:
    cells = (f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in row.items())
    print("  " + "  ".join(cells), flush=True)


TABLES = {
    "memory": memory_table,
    "sensitivity": sensitivity_table,
    "rank": rank_table,
    "selectors": selectors_table,
    "share": share_table,
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the operations.")
    parser.add_argument("--only", choices=sorted(TABLES), nargs="+", default=list(TABLES), help="tables to run")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of the fast operations (default 5)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/ops.json"), help="JSON file, - for none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time of all threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    dtypes = [torch.float32, torch.bfloat16] if device.type == "cuda" else [torch.float32]
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    run = Run(device, dtypes, arguments.repeats, clock)
    where = environment(device) | {"clock": arguments.clock}
    show(where)
    path = None if arguments.output == "-" else Path(arguments.output)
    tables: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}
    for name in [table for table in TABLES if table in arguments.only]:
        print(name)
        tables[name] = {"environment": where, "rows": TABLES[name](run)}
        if path:
            path.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
