"""`--plan`: what a prune job will read, write and take, before it begins. It writes nothing and starts no Ray."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, pairwise

import numpy as np
import torch

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.payload import packed_size
from pipeline.artifact.tables import in_tar, tar_size
from pipeline.budget import Budget, parse_budget
from pipeline.cluster.device import worker_device
from pipeline.errors import UserError
from pipeline.index.assign import shard_starts
from pipeline.index.build import SHARDS_PER_FILE
from pipeline.prune.census import Census, take_census
from pipeline.prune.measure import Measured, Size, index_row, measure
from pipeline.prune.plan import Plan, plan
from pipeline.prune.read import prepared_bytes
from pipeline.prune.settings import PruneSettings
from pipeline.prune.write import error_rows, prompt_rows
from schemas.columns import table_of
from schemas.records import CommitRecord, FileEntry, to_json
from schemas.samples import IndexRow
from schemas.selections import ErrorRow, PayloadRow, PromptRow
from schemas.views import STAGES

BUDGETS = ("32", "64", "128", "256", "all")  # that are shown beside the one that is asked for
DTYPES = ("float32", "float16", "int8")  # bfloat16 takes what float16 takes
BATCH_OF_AUTO = 8  # with `--batch-size auto` the job measures; the plan does not
REPEATED = 64  # shards that a sample of the corpus is repeated to, to see how many images a shard holds
_PAYLOADS = 64  # rows that tell what a row takes
MODEL_STAGES = ("encode", "score", "select")


@dataclass(frozen=True)
class Forecast:
    """What a job will be."""

    census: Census
    measured: Measured
    tokens: float  # visual tokens of an image, on average
    shards: int
    shards_there: int  # of them
    size_bytes: float  # of the whole output
    parts: Mapping[str, float]  # of it, by folder
    table: Mapping[str, Mapping[str, float]]  # by dtype and budget: bytes of the whole output
    stage_sec: Mapping[str, float]  # of one process, by stage: the scan, and those of every image
    workers: int
    cpus: int
    wall_sec: float  # with so many workers and processors as here, without start-up
    limit: str  # what the time hangs on
    block_bytes: int  # of the largest shard between two stages
    block: str  # what it holds
    notes: tuple[str, ...] = ()  # on the inputs

    @property
    def worker_hours(self) -> float:
        """Of model workers."""
        return sum(self.stage_sec[stage] for stage in MODEL_STAGES) / 3600

    @property
    def cpu_hours(self) -> float:
        """Of processors that scan, read, decode and write."""
        return sum(sec for stage, sec in self.stage_sec.items() if stage not in MODEL_STAGES) / 3600


def forecast(settings: PruneSettings) -> Forecast:
    """Look at the corpus, measure the model, multiply.

    Raises:
        UserError: what the job itself would refuse before its first shard, or no image can be used.
    """
    planned = plan(settings)
    artifact = Artifact(settings.output)
    artifact.check_job(planned.job)
    census = take_census(
        planned.inputs,
        partial(prepared_bytes, planned.model),
        count=settings.plan_sample,
        limit=settings.limit,
        reading=settings.reading,
    )
    if not census.seen.samples:
        raise UserError("--corpus: no sample in what was looked at; name the files that hold the images")
    batch_size = BATCH_OF_AUTO if settings.batch_size == "auto" else int(settings.batch_size)
    dtypes = _dtypes(planned) if "parquet" in planned.forms else ()
    threads = torch.get_num_threads()
    try:
        measured = measure(census.kept, planned.encode(settings.device, batch_size), dtypes)
    finally:
        torch.set_num_threads(threads)  # a model on a CPU takes one
    return _multiply(settings, planned, census, measured, len(artifact.committed_shards()))


def _dtypes(planned: Plan) -> tuple[str, ...]:
    own = planned.dtype if planned.feature_dtype == "model" else planned.feature_dtype
    return (own, *(name for name in DTYPES if name != own))


def _multiply(settings: PruneSettings, planned: Plan, census: Census, measured: Measured, there: int) -> Forecast:
    output = _Output(settings, planned, census, measured)
    asked = planned.select.budget
    parts = output.parts(_dtypes(planned)[0] if planned.forms else None, asked)
    budgets = {settings.max_tokens: asked, **{text: parse_budget(text, "--max-tokens") for text in BUDGETS}}
    shown = {text: budget for text, budget in budgets.items() if text == settings.max_tokens or output.cuts(budget)}
    table: dict[str, dict[str, float]] = {
        name: {text: sum(output.parts(name, budget).values()) for text, budget in shown.items()}
        for name in _dtypes(planned)
    }
    table["none"] = {text: sum(output.parts(None, budget).values()) for text, budget in shown.items()}
    images, seen = census.total.images, max(1.0, census.seen.samples)
    stage_sec = {
        "scan": census.seconds / seen * census.total.samples,
        **{stage: measured.seconds[stage] * images for stage in STAGES},
    }
    cpus = settings.num_cpus or os.cpu_count() or 1
    workers = settings.workers or _workers(settings, cpus)
    wall, limit = _wall(stage_sec, measured.device, workers, cpus)
    pixels = max(output.shard_pixels, default=0)
    kept = math.ceil(min(settings.shard_size, output.images_a_shard)) * output.payload(_dtypes(planned)[0], asked)
    return Forecast(
        census=census,
        measured=measured,
        tokens=output.tokens,
        shards=output.shards,
        shards_there=there,
        size_bytes=sum(parts.values()),
        parts=parts,
        table=table,
        stage_sec=stage_sec,
        workers=workers,
        cpus=cpus,
        wall_sec=wall,
        limit=limit,
        block_bytes=int(max(pixels, kept if planned.forms else 0)),
        block="prepared pixels" if pixels >= kept or not planned.forms else "kept features",
        notes=tuple(planned.notes),
    )


def _workers(settings: PruneSettings, cpus: int) -> int:
    """As many as a job on this machine would start."""
    if worker_device(settings.device).type != "cuda":
        return max(1, cpus - 1)
    share = settings.gpus_per_worker or 1.0
    return max(1, int(torch.cuda.device_count() / share + 1e-9))


def _wall(stage_sec: Mapping[str, float], device: str, workers: int, cpus: int) -> tuple[float, str]:
    """Seconds from the first file to the last, and what they hang on."""
    model = sum(stage_sec[stage] for stage in MODEL_STAGES)
    others = sum(stage_sec[stage] for stage in ("read", "decode", "write"))
    by_model = model / workers
    by_cpus = (others + (model if device == "cpu" else 0.0)) / cpus
    return stage_sec["scan"] / cpus + max(by_model, by_cpus), (
        "the model: more workers" if by_model >= by_cpus else "the processors: more of them for reading and decoding"
    )


class _Output:
    """The bytes of a job's files, at any dtype and budget."""

    def __init__(self, settings: PruneSettings, planned: Plan, census: Census, measured: Measured) -> None:
        self._settings, self._planned, self._census, self._measured = settings, planned, census, measured
        self._prepared = Counter(size for size in census.prepared if size)  # those that can't be decoded have none
        self.shard_pixels, seen = self._cut()
        self.images_a_shard = seen / max(1, len(self.shard_pixels))
        self.shards = math.ceil(census.total.images / self.images_a_shard) if seen else 1
        self.tokens = self._mean(lambda tokens: tokens)
        rows = [index_row(sample, slot) for slot, sample in enumerate(census.kept)]
        self._inputs = len(to_json({"inputs": [vars(item) for item in planned.inputs]}))  # as the index names them
        self._index = Size.of(table_of(IndexRow, rows))
        self._prompts = Size.of(table_of(PromptRow, prompt_rows(rows)))
        self._errors = Size.of(table_of(ErrorRow, list(error_rows(rows))))
        self._payloads = Size.of(table_of(PayloadRow, [_payload_row(number) for number in range(_PAYLOADS)]))

    def _cut(self) -> tuple[list[int], int]:
        """Pixels of each shard, and the images in them: of the corpus, or of its sample again and again."""
        prepared, most = self._census.prepared, self._settings.shard_bytes
        enough = len(prepared) if self._census.whole else max(len(prepared), REPEATED * self._settings.shard_size)
        taken = list(islice(cycle(prepared), enough)) if prepared else []
        sizes = [np.array(taken, np.int64)]
        starts = [*shard_starts(sizes, self._settings.shard_size, most), len(taken)]
        pixels = [sum(taken[first:last]) for first, last in pairwise(starts)]
        if not self._census.whole and len(pixels) > 1:
            pixels, taken = pixels[:-1], taken[: starts[-2]]  # the last one is cut off by the end of the sample
        return pixels, len(taken)

    def _mean(self, of: Callable[[int], float]) -> float:
        """The mean over the usable images of something that depends on their tokens."""
        each = ((self._tokens(size), count) for size, count in self._prepared.items())
        return sum(of(tokens) * count for tokens, count in each) / max(1, self._prepared.total())

    def _tokens(self, size: int) -> int:
        return max(1, round(size * self._measured.tokens_per_byte))

    def cuts(self, budget: Budget) -> bool:
        """Whether the budget keeps less than all tokens, or is all of them."""
        return budget.kind == "all" or budget.of(round(self.tokens)) < round(self.tokens)

    def payload(self, dtype: str, budget: Budget) -> float:
        """Bytes of an image's features, on average."""
        return self._mean(lambda tokens: packed_size(self._measured.widths, budget.of(tokens), dtype))

    def parts(self, dtype: str | None, budget: Budget) -> dict[str, float]:
        """Bytes of each folder; no features without a dtype."""
        measured, shards, total = self._measured, self.shards, self._census.total
        images = total.usable * (1 - sum(measured.failed.values()) / (measured.images + sum(measured.failed.values())))
        further = self._mean(budget.of) - measured.decisions.kept
        forms = self._planned.forms or ("webdataset",)
        features = 0.0
        if dtype is not None and "webdataset" in forms:
            member = max(0.0, measured.decisions.member + further * measured.decisions.member_token)
            each = self._mean(lambda tokens: in_tar(packed_size(measured.widths, budget.of(tokens), dtype)))
            features += shards * tar_size(math.ceil(images / shards * (each + in_tar(math.ceil(member)))))
        if dtype is not None and "parquet" in forms:
            features += images * self.payload(dtype, budget) * measured.packed.get(dtype, 1.0)
        selection = max(0.0, measured.decisions.selection.each + further * measured.decisions.selection_token)
        names = ["selections", "prompts", "errors"]
        names += [*(f"features.{form}" for form in forms), "payloads"] if dtype is not None else []
        files = -(-shards // SHARDS_PER_FILE)
        return {
            "features": features,
            "payloads": 0.0 if dtype is None else self._payloads.at(images, shards),
            "selections": Size(measured.decisions.selection.base, selection).at(images, shards),
            "prompts": self._prompts.at(total.prompts, shards),
            "errors": self._errors.at(sum(total.failed.values()), shards),
            "index": self._index.at(total.samples, files),
            "records": shards * _record_bytes(names) + len(to_json(self._planned.job)) + self._inputs,
        }


def _payload_row(number: int) -> PayloadRow:
    """A row that takes as much as any other: no two hashes have anything in common."""
    image_id, sha256 = (hashlib.sha256(f"{name} {number}".encode()).hexdigest() for name in ("image", "payload"))
    return PayloadRow(image_id=image_id, offset=number << 19, size_bytes=1 << 19, sha256=sha256)


def _record_bytes(names: Sequence[str]) -> int:
    """Bytes of a commit record and of its part of the manifest."""
    entry = FileEntry("features/shard-00000000.tar", 512, 1 << 20, "1" * 19, "0" * 64)
    counts = {name: 512 for name in ("samples", "images", "prompts", "samples_elsewhere", "samples.ok", "prompts.ok")}
    record = CommitRecord(
        0, {name: entry for name in names}, counts, {stage: 1.123456 for stage in STAGES}, 1.7e9 + 0.1, 1.7e9 + 0.1,
        device="cpu", batch_size=8,
    )  # fmt: skip
    of_manifest = {name: vars(entry) for name in names}
    return len(to_json(record)) + len(to_json({"shards": [{"shard": 0, "files": of_manifest}]}))
