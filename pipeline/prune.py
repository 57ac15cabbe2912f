"""The prune job: index, then read -> decode -> encode -> score -> select -> write, a shard at a time on Ray Data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from pipeline.artifact import Artifact
from pipeline.budget import parse_budget
from pipeline.checkpoint import identity, open_checkpoint
from pipeline.corpus import resolve_corpus
from pipeline.encode import EncodeSettings, EncodeShards
from pipeline.errors import UserError
from pipeline.index import Index, extend_index, read_index, unindexed_inputs
from pipeline.progress import Progress
from pipeline.read import ReadSettings, read_shard
from pipeline.runtime import cluster_cpus, cluster_gpus, map_shards, ray_session
from pipeline.select import SelectSettings
from pipeline.shared import check_at_least_one, environment, local_model, own_dtype
from pipeline.write import WriteSettings, write_shard
from schemas.records import JobRecord
from schemas.tables import SCHEMA_VERSION

Say = Callable[[str], None]


@dataclass(frozen=True)
class PruneSettings:
    """Everything `jobs/prune_corpus.py` can be told. The first block decides the output's bytes."""

    corpus: tuple[str, ...]
    model: str
    output: str
    max_tokens: str = "64"
    selector: str = "zoo"
    estimator: str = "closed_form"
    features: str = "webdataset"
    feature_dtype: str = "model"
    dtype: str = "auto"
    shard_size: int = 512
    batch_size: int = 8
    seed: int = 0
    limit: int | None = None
    # how the work is done
    workers: int | None = None
    gpus_per_worker: float | None = None
    ray_address: str | None = None
    num_cpus: int | None = None


@dataclass(frozen=True)
class PruneResult:
    """What a run did."""

    shards_done: int
    shards_skipped: int
    images: int
    errors: int


def prune_corpus(settings: PruneSettings, say: Say) -> PruneResult:
    """Run or resume the job.

    Args:
        settings: of the job.
        say: takes one line for the user.

    Raises:
        UserError: bad input; nothing was harmed.
    """
    parse_budget(settings.max_tokens, "--max-tokens")
    check_at_least_one(settings, ("shard_size", "batch_size", "workers", "limit"))
    inputs = resolve_corpus(settings.corpus)
    checkpoint, family = open_checkpoint(settings.model)
    dtype = settings.dtype if settings.dtype != "auto" else own_dtype(checkpoint.config)
    artifact = Artifact(Path(settings.output).resolve())
    job = JobRecord(
        kind="prune",
        schema_version=SCHEMA_VERSION,
        settings=_identity_settings(settings, dtype),
        model=identity(checkpoint, family),
        environment=environment(),
    )
    index_root = artifact.root / "_index"
    index = read_index(index_root)
    new_inputs = unindexed_inputs(index, inputs, artifact.root)
    if index is not None and artifact.finished and not new_inputs:
        artifact.adopt_job(job)
        pending, reasons = artifact.pending_shards(index.num_shards)
        if not pending:
            say(f"all {index.num_shards} shards of {artifact.root} are there already; nothing to do")
            return PruneResult(0, index.num_shards, 0, 0)
    with artifact.locked():
        artifact.adopt_job(job)
        with ray_session(settings.ray_address, settings.num_cpus):
            if new_inputs:
                if index is not None and settings.limit is not None:
                    raise UserError("--limit: a corpus indexed with a limit can't grow; choose another --output")
                say(f"indexing {len(new_inputs)} input files")
                artifact.reopen()
                index = extend_index(
                    index_root, index, new_inputs, shard_size=settings.shard_size, limit=settings.limit
                )
                say(
                    f"indexed {index.num_samples:,} samples: {index.num_images:,} distinct images in "
                    f"{index.num_shards:,} shards, {index.num_prompts:,} prompts"
                )
            assert index is not None, "a corpus has at least one input"
            pending, reasons = artifact.pending_shards(index.num_shards)
            for reason in reasons:
                say(reason)
            if pending:
                artifact.reopen()
            if len(pending) < index.num_shards:
                say(f"{index.num_shards - len(pending):,} of {index.num_shards:,} shards are there already")
            result = _run_shards(settings, dtype, artifact, index, pending, say)
        artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "prune", "num_shards": index.num_shards})
    return result


def _run_shards(
    settings: PruneSettings, dtype: str, artifact: Artifact, index: Index, pending: list[int], say: Say
) -> PruneResult:
    if not pending:
        return PruneResult(0, index.num_shards, 0, 0)
    gpus = settings.gpus_per_worker if settings.gpus_per_worker is not None else float(cluster_gpus() > 0)
    workers = settings.workers or _default_workers(gpus)
    workers = min(workers, len(pending))
    model = local_model(settings.model)
    encode = EncodeSettings(
        model=model,
        dtype=dtype,
        batch_size=settings.batch_size,
        feature_dtype=settings.feature_dtype,
        select=SelectSettings(
            budget=parse_budget(settings.max_tokens, "--max-tokens"),
            selector=settings.selector,
            estimator=settings.estimator,
            seed=settings.seed,
        ),
        use_gpu=gpus > 0,
    )
    features = ("webdataset", "parquet") if settings.features == "both" else (settings.features,)
    # Decode, model and write ask for different shares of a CPU: equal ones would be fused and no longer overlap.
    shards_to_do = ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending))
    decoded = map_shards(shards_to_do, _read_batch, num_cpus=0.75, fn_args=(ReadSettings(index, model),))
    encoded = map_shards(
        decoded,
        EncodeShards,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus or None,
        fn_constructor_args=(encode,),
    )
    outcomes = map_shards(encoded, write_shard, num_cpus=0.25, fn_args=(WriteSettings(artifact.root, features),))
    left = index.num_images if len(pending) == index.num_shards else _images_of(index, pending)
    progress = Progress(left, "images")
    images = errors = shards = 0
    for row in outcomes.iter_rows():
        shards += 1
        images += row["kept"]
        errors += row["errors"]
        progress.add(row["images"], row["errors"])
    if shards != len(pending):
        raise RuntimeError(f"{len(pending)} shards were asked for but {shards} committed")
    return PruneResult(shards, index.num_shards - len(pending), images, errors)


def _read_batch(batch: pa.Table, settings: ReadSettings) -> pa.Table:
    (shard,) = batch["shard"].to_pylist()
    return read_shard(shard, settings)


def _images_of(index: Index, shards: list[int]) -> int:
    return sum(len(index.read_shard(shard)["slot"].drop_null()) for shard in shards)


def _default_workers(gpus_per_worker: float) -> int:
    if gpus_per_worker > 0:
        return max(1, int(cluster_gpus() / gpus_per_worker))
    return max(1, cluster_cpus() - 1)


def _identity_settings(settings: PruneSettings, dtype: str) -> dict[str, Any]:
    """The settings that decide the bytes of the output."""
    names = (
        "max_tokens",
        "selector",
        "estimator",
        "features",
        "feature_dtype",
        "shard_size",
        "batch_size",
        "seed",
        "limit",
    )
    return {**{name: getattr(settings, name) for name in names}, "dtype": dtype}


def seconds_per_stage(artifact: Artifact) -> dict[str, float]:
    """Seconds of each stage, added up over the committed shards."""
    total: dict[str, float] = {}
    for record in artifact.commits():
        for stage, seconds in record.seconds.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total
