"""What a GPU makes of the project: agreement with the CPU, operations, the whole job by the tower alone, answering.

    python benchmarks/gpu.py                       everything on a GPU, benchmarks/results/gpu.json (8 minutes)
    python benchmarks/gpu.py --only waits          what a batch waits for and launches; needs no GPU
    python benchmarks/gpu.py --small --output -    every line of it on the CPU, on models and images that are small

Models have random weights in the shapes of real ones. `waits` counts on a device that is the CPU
(benchmarks/counted_device.py) at the real number of layers and tokens and a small width, which change no count.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(ROOT)

import argparse
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.counted_device import Counted, counted_call
from benchmarks.ops import environment, make_features, make_projector, show
from benchmarks.random_models import SHAPES, Shape, Sizes
from benchmarks.synthetic import textured
from pipeline.answer.job import answer_corpus
from pipeline.answer.settings import AnswerSettings
from pipeline.artifact.artifact import Artifact
from pipeline.budget import parse_budget
from pipeline.families.base import Encoder, Packed
from pipeline.families.checkpoint import open_checkpoint
from pipeline.prune.ahead import Download, Laps
from pipeline.prune.job import PruneSettings, prune_corpus
from pipeline.prune.read import preparer_of
from pipeline.prune.select import SelectSettings, TokenSelector
from zoo_ops import estimate_sensitivity, rank_tokens

Row = dict[str, Any]
GOALS = {"whole job / tower alone": 0.9, "score and rank / encode": 0.05, "kept sets equal": 0.99, "waits a batch": 3}


@dataclass(frozen=True)
class Run:
    """What is measured, and how much of it."""

    device: torch.device
    small: bool
    work: Path

    @property
    def dtypes(self) -> Sequence[torch.dtype]:
        """Of the operations."""
        return (torch.float32, torch.bfloat16)

    @property
    def model_dtype(self) -> torch.dtype:
        """Of the towers: bfloat16 where it is fast."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def sizes(self, shape: Shape) -> Sizes:
        """What a shape is measured with."""
        return shape.small if self.small else shape.real

    def checkpoint(self, shape: Shape) -> str:
        """A checkpoint of a shape, made once."""
        folder = self.work / f"model-{shape.name}"
        return str(folder) if folder.exists() else shape.save(folder, self.sizes(shape), self.model_dtype)

    def wait(self) -> None:
        """Until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """The median time of `work`, after one run that does not count."""
        times = []
        for _ in range(1 if self.small else repeats + 1):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return median(times[1:] or times)


def pictures(count: int, size: tuple[int, int], *, first: int = 0) -> Iterator[Image.Image]:
    """Made photographs of this width and height, each another one."""
    for number in range(first, first + count):
        yield Image.fromarray(textured(0, number)).resize(size, Image.Resampling.BICUBIC)


def batch_of(run: Run, shape: Shape, path: str, encoder: Encoder, count: int, *, first: int = 0) -> Packed:
    """A batch of made photographs, prepared for an encoder."""
    images = list(pictures(count, shape.picture_of(run.sizes(shape)), first=first))
    pixels = [preparer_of(path).prepare(image) for image in images]
    return encoder.pack(pixels, [(image.height, image.width) for image in images])


def encoder_of(path: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    """The encoder of a checkpoint."""
    checkpoint, family = open_checkpoint(path)
    return family.encoder(checkpoint, device, dtype)


def waits_table(run: Run) -> list[Row]:
    """What encoding and selecting a batch waits for on a device, and what it launches there."""
    rows = []
    for shape in SHAPES.values():
        narrow = replace(run.sizes(shape), width=64, heads=4, text_width=64, text_layers=1)
        path = shape.save(run.work / f"narrow-{shape.name}", narrow, torch.float32)
        counted = Counted()
        with counted.device() as device:
            encoder = encoder_of(path, device, torch.float32)
            selector = TokenSelector(encoder.projector, SelectSettings(parse_budget(shape.max_tokens, "")))
            for size in (1, 2) if run.small else (8, 16):
                packed = batch_of(run, shape, path, encoder, size)
                work = partial(one_batch, encoder, selector, packed, device)
                work()
                found = counted_call(work, counted)
                tower = counted_call(partial(encoder.encode, packed), counted)
                assert found["waits"] <= GOALS["waits a batch"], found["waits_by_cause"]
                row = {"shape": shape.name, "batch": size, "layers": narrow.layers, **found}
                row |= {"launches_of_the_tower": tower["launches"], "launches_an_image": found["launches"] / size}
                rows.append(row)
                show(row)
    return rows


def one_batch(encoder: Encoder, selector: TokenSelector, packed: Packed, device: torch.device) -> Download:
    """What the prune job does with a batch on its device; the results are on their way when it returns."""
    images = encoder.encode(packed)
    finite = [torch.isfinite(one.features_ND).all() & torch.isfinite(one.projected_NO).all() for one in images]
    ranked = selector.rank(images, [f"{number:064x}" for number in range(len(images))], Laps(device))
    kept = ranked.kept([image.projected_NO for image in images])
    return Download([torch.stack(finite), *ranked.tensors(), *kept], device)


def agreement_table(run: Run) -> list[Row]:
    """The same images on the device and on the CPU: kept sets, and how far features are apart."""
    rows = []
    tiny = str(ROOT / "examples" / "tiny-llava")
    middle = replace(SHAPES["LLaVA-NeXT"].real, layers=4, width=256, heads=4, text_width=512, text_layers=1)
    shape = SHAPES["LLaVA-NeXT"]
    path = shape.save(run.work / "next", run.sizes(shape) if run.small else middle, torch.float32)
    for name, model, count, size, max_tokens in (
        ("small images", tiny, 500, (128, 128), "64"),
        ("LLaVA-NeXT geometry", path, 50, shape.picture_of(run.sizes(shape)), shape.max_tokens),
    ):
        count = 2 if run.small else count
        for dtype in run.dtypes:
            sides = []
            for device in (run.device, torch.device("cpu")):
                encoder = encoder_of(model, device, dtype)
                selector = TokenSelector(encoder.projector, SelectSettings(parse_budget(max_tokens, "")))
                sides.append(partial(decided, model, encoder, selector, device))
            equal, apart, largest = 0, 0.0, 0.0
            for begin in range(0, count, 10):
                images = list(pictures(min(10, count - begin), size, first=begin))
                for one, other in zip(*(side(images) for side in sides), strict=True):
                    equal += set(one[0].tolist()) == set(other[0].tolist())
                    apart = max(apart, float((one[1].float() - other[1].float()).abs().max()))
                    largest = max(largest, float(other[1].float().abs().max()))
            row = {"images": name, "dtype": str(dtype).split(".")[1], "count": count, "kept_sets_equal": equal / count}
            row |= {"features_apart": apart / largest, "rounding_of_dtype": torch.finfo(dtype).eps}
            rows.append(row)
            show(row)
    return rows


def decided(
    model: str, encoder: Encoder, selector: TokenSelector, device: torch.device, images: Sequence[Image.Image]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The kept tokens and the projected features of some images, on the host."""
    pixels = [preparer_of(model).prepare(image) for image in images]
    encoded = encoder.encode(encoder.pack(pixels, [(image.height, image.width) for image in images]))
    ranked = selector.rank(encoded, [f"{number:064x}" for number in range(len(images))], Laps(device))
    chosen = ranked.selections([tensor.cpu() for tensor in ranked.tensors()])
    return [(one.ranking_K, image.projected_NO.cpu()) for one, image in zip(chosen, encoded, strict=True)]


def ops_table(run: Run) -> list[Row]:
    """Scoring and ranking alone, rows in float32 and bfloat16."""
    rows = []
    narrow = 16 if run.small else 1
    for shape, (tokens, groups, kept) in {"LLaVA-1.5": (576, 1, 64), "LLaVA-NeXT": (2880, 5, 640)}.items():
        for dtype in run.dtypes:
            spec = make_projector(shape, run.device, dtype, narrow=narrow)
            for batch in (1, 8):
                x = make_features(shape, batch, run.device, dtype, narrow=narrow)
                if run.small:
                    x = x[:, : 10 * groups]
                tokens = x.shape[1]
                z = spec(x)
                ids = None if groups == 1 else (torch.arange(tokens) // (tokens // groups)).expand(batch, -1)
                kept = min(kept, tokens)
                s = estimate_sensitivity(x, spec)
                row: Row = {"shape": shape, "dtype": str(dtype).split(".")[1], "batch": batch, "tokens": tokens}
                row["projection_sec"] = run.seconds(partial(spec, x))
                row["score_sec"] = run.seconds(partial(estimate_sensitivity, x, spec))
                row["rank_sec"] = run.seconds(partial(rank_tokens, z, s, max_tokens=kept, groups_BN=ids))
                rows.append(row)
                show(row)
    return rows


def seconds_of_a_batch(run: Run, shape: Shape, path: str, batch: int) -> tuple[float, float]:
    """Of the tower alone, and with scoring, ranking and the way of the results to the host."""
    encoder = encoder_of(path, run.device, run.model_dtype)
    selector = TokenSelector(encoder.projector, SelectSettings(parse_budget(shape.max_tokens, "")))
    packed = batch_of(run, shape, path, encoder, batch)
    tower = run.seconds(partial(encoder.encode, packed))
    return tower, run.seconds(lambda: one_batch(encoder, selector, packed, run.device).wait())


def job_table(run: Run) -> list[Row]:
    """Images a second of the tower alone, of a batch with scoring and ranking, and of the whole job."""
    rows = []
    for shape in SHAPES.values():
        path = run.checkpoint(shape)
        batch = 2 if run.small else 16
        tower, whole_batch = seconds_of_a_batch(run, shape, path, batch)
        corpus = corpus_of(run, shape)
        output = run.work / f"pruned-{shape.name}"
        with utilisation_of(run.device) as busy:
            prune_corpus(
                PruneSettings(
                    corpus=(corpus,), model=path, output=str(output), max_tokens=shape.max_tokens, batch_size=batch,
                    shard_size=4 * batch, workers=1, device=run.device.type,
                    dtype=str(run.model_dtype).split(".")[1],
                ),
                lambda _: None,
            )  # fmt: skip
        records = list(Artifact(output).commits())
        images = sum(record.files["selections"].rows for record in records)
        seconds = {name: sum(one.seconds[name] for one in records) for name in ("encode", "score", "select")}
        took = max(one.committed or 0.0 for one in records) - min(one.began or 0.0 for one in records)
        row: Row = {"shape": shape.name, "dtype": str(run.model_dtype).split(".")[1], "batch": batch, "images": images}
        row |= {"tower_images_per_sec": batch / tower, "batch_images_per_sec": batch / whole_batch}
        row |= {"job_images_per_sec": images / took, "job_per_tower": images / took / (batch / tower)}
        row |= {"score_and_rank_per_encode": (seconds["score"] + seconds["select"]) / seconds["encode"]}
        row |= {"busy_share_of_job": sum(seconds.values()) / took, "utilisation_percent": mean_of(busy)}
        rows.append(row)
        show(row)
    return rows


def corpus_of(run: Run, shape: Shape) -> str:
    """A tar of JPEGs with a prompt each."""
    count = 4 if run.small else {"LLaVA-1.5": 2000}.get(shape.name, 400)
    path = run.work / f"{shape.name}.tar"
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(pictures(count, shape.picture_of(run.sizes(shape)))):
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=85)
            record = json.dumps({"prompts": [{"id": f"{number}", "prompt": "what is in the picture ?"}]}).encode()
            for name, data in ((f"{number:06d}.jpg", stream.getvalue()), (f"{number:06d}.json", record)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return str(path)


@contextmanager
def utilisation_of(device: torch.device) -> Iterator[list[float]]:
    """How busy the GPU says it is while the block runs, percent, every half second; nothing on the CPU."""
    seen: list[float] = []
    over = threading.Event()
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]

    def look() -> None:
        while not over.wait(0.5):
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            seen.extend([float(said)] if said.isdecimal() else [])  # [N/A] of a part of a GPU

    watching = threading.Thread(target=look) if device.type == "cuda" and shutil.which("nvidia-smi") else None
    if watching is not None:
        watching.start()
    try:
        yield seen
    finally:
        over.set()
        if watching is not None:
            watching.join()


def mean_of(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(values)) if values else None


def answer_table(run: Run) -> list[Row]:
    """New tokens a second of answering from what `job` pruned, by a language model of few layers."""
    rows = []
    for shape in SHAPES.values():
        pruned = run.work / f"pruned-{shape.name}"
        if not pruned.exists():
            job_table(run)
        output, new = run.work / f"answers-{shape.name}", 4 if run.small else 64
        answer_corpus(
            AnswerSettings(
                pruned=str(pruned), model=run.checkpoint(shape), output=str(output), max_new_tokens=new,
                device=run.device.type, dtype=str(run.model_dtype).split(".")[1], workers=1,
            ),
            lambda _: None,
        )  # fmt: skip
        records = list(Artifact(output).commits())
        answers = sum(entry.rows for record in records for entry in record.files.values())
        took = sum(sum(record.seconds.values()) for record in records)
        row = {"shape": shape.name, "text_layers": run.sizes(shape).text_layers, "answers": answers}
        rows.append(row | {"new_tokens_per_sec": answers * new / took})
        show(rows[-1])
    return rows


TABLES = {
    "waits": waits_table,
    "agreement": agreement_table,
    "ops": ops_table,
    "job": job_table,
    "answer": answer_table,
}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the tables that are asked for; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=list(TABLES), nargs="+", default=list(TABLES), help="tables to run")
    parser.add_argument("--small", action="store_true", help="small models and images, each measured once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/gpu.json"), help="JSON file, - for none")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cpu" and not given.small and set(given.only) != {"waits"}:
        parser.error("torch sees no GPU here; --small runs every line on the CPU, --only waits needs none")
    path = None if given.output == "-" else Path(given.output)
    found: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        run = Run(device, given.small, Path(folder))
        for name in given.only:
            print(name, flush=True)
            started = time.perf_counter()
            rows = TABLES[name](run)
            took = round(time.perf_counter() - started, 1)
            found[name] = {"environment": environment(device), "goals": GOALS, "took_sec": took, "rows": rows}
            if path:
                path.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
