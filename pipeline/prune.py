"""The prune job: index, then read -> decode -> encode -> score -> select -> write, a shard at a time on Ray Data."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.artifact import Artifact
from pipeline.attempts import Policy
from pipeline.budget import parse_budget
from pipeline.build_index import extend_index
from pipeline.checkpoint import identity, open_checkpoint
from pipeline.corpus import CorpusInput, resolve_corpus
from pipeline.encode import EncodeSettings
from pipeline.errors import UserError
from pipeline.index import Index, drop_generation, read_index, unindexed_inputs
from pipeline.job_settings import check_at_least_one, environment, own_dtype
from pipeline.read import ReadSettings
from pipeline.redo import forget_transient_errors
from pipeline.runtime import cluster_cpus, cluster_gpus, ray_session
from pipeline.select import SelectSettings, resolve_estimator
from pipeline.shards import StreamSettings, error_rate_message, run_shards, too_many_fail
from pipeline.tune import find_batch_size
from pipeline.write import WriteSettings
from schemas.records import JobRecord
from schemas.tables import SCHEMA_VERSION

Say = Callable[[str], None]

# The settings that decide the bytes of the output; another value needs another output folder.
_IDENTITY = (
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
    batch_size: int | str = 8  # or "auto"
    seed: int = 0
    limit: int | None = None
    # how the work is done
    workers: int | None = None
    gpus_per_worker: float | None = None
    max_error_rate: float = 0.5
    retries: int = 2
    shard_timeout_sec: float = 3600.0
    verify: bool = False
    redo_errors: bool = False
    ray_address: str | None = None
    num_cpus: int | None = None


@dataclass(frozen=True)
class PruneResult:
    """What a run did."""

    shards_done: int
    shards_skipped: int
    images: int = 0
    errors: int = 0
    failures: dict[int, str] = field(default_factory=dict)  # shards that were given up, with the reason
    stopped_by: int | None = None  # signal number


def prune_corpus(settings: PruneSettings, say: Say) -> PruneResult:
    """Run or resume the job.

    Args:
        settings: of the job.
        say: takes one line for the user.

    Raises:
        UserError: bad input; nothing was harmed.
    """
    _check(settings)
    inputs = resolve_corpus(settings.corpus)
    checkpoint, family = open_checkpoint(settings.model)
    estimator, note = resolve_estimator(family.projector(checkpoint.config), settings.selector, settings.estimator)
    family.preparer(checkpoint)  # so that a wrong image processor shows before any work
    dtype = settings.dtype if settings.dtype != "auto" else own_dtype(checkpoint.config)
    artifact = Artifact(Path(settings.output).resolve())
    job = JobRecord(
        kind="prune",
        schema_version=SCHEMA_VERSION,
        settings={**{name: getattr(settings, name) for name in _IDENTITY}, "dtype": dtype, "estimator": estimator},
        model=identity(checkpoint, family),
        environment=environment(checkpoint),
        notes=[note] if note else [],
    )
    index = read_index(artifact.root / "_index")
    new_inputs = unindexed_inputs(index, inputs, artifact.root)
    if index is not None and artifact.finished and not (new_inputs or settings.verify or settings.redo_errors):
        artifact.adopt_job(job)
        if not artifact.resume(index.num_shards).pending:
            say(f"all {index.num_shards} shards of {artifact.root} are there already; nothing to do")
            return PruneResult(0, index.num_shards)
    artifact.check_job(job)
    if note:
        say(note)
    with artifact.locked(), ray_session(settings.ray_address, settings.num_cpus):
        gpus = settings.gpus_per_worker if settings.gpus_per_worker is not None else float(cluster_gpus() > 0)
        encode = EncodeSettings(
            model=checkpoint.pinned,
            dtype=dtype,
            batch_size=0,
            feature_dtype=settings.feature_dtype,
            select=SelectSettings(
                budget=parse_budget(settings.max_tokens, "--max-tokens"),
                selector=settings.selector,
                estimator=estimator,
                seed=settings.seed,
            ),
            use_gpu=gpus > 0,
            policy=Policy(settings.retries, settings.shard_timeout_sec),
        )
        encode = replace(encode, batch_size=_batch_size(settings, artifact, job, encode, gpus, say))
        index = _index(settings, artifact, index, new_inputs, say)
        if settings.redo_errors:
            index = forget_transient_errors(artifact, index, say)
        return _run(settings, artifact, index, encode, gpus, say)


def _check(settings: PruneSettings) -> None:
    parse_budget(settings.max_tokens, "--max-tokens")
    check_at_least_one(settings, ("shard_size", "workers", "limit"))
    if settings.batch_size != "auto":
        check_at_least_one(settings, ("batch_size",))
    if not 0 <= settings.max_error_rate <= 1:
        raise UserError(f"--max-error-rate {settings.max_error_rate}: expected a share between 0 and 1")
    if settings.retries < 0:
        raise UserError(f"--retries {settings.retries}: expected at least 0")
    if settings.shard_timeout_sec <= 0:
        raise UserError(f"--shard-timeout {settings.shard_timeout_sec}: expected seconds above 0")


def _batch_size(
    settings: PruneSettings, artifact: Artifact, job: JobRecord, encode: EncodeSettings, gpus: float, say: Say
) -> int:
    """The batch size in force; writes the job record, which holds it when it was measured."""
    old = artifact.read_job()
    if settings.batch_size != "auto":
        artifact.adopt_job(job)
        return int(settings.batch_size)
    if old is None:
        measured = find_batch_size(encode, gpus)
        say(f"batch size {measured}, the fastest on this hardware; kept for this output")
        job = replace(job, resolved={**job.resolved, "batch_size": measured})
    return int(artifact.adopt_job(job).resolved["batch_size"])


def _index(
    settings: PruneSettings, artifact: Artifact, index: Index | None, new_inputs: list[CorpusInput], say: Say
) -> Index:
    """The index with the new inputs in it."""
    if not new_inputs:
        assert index is not None, "a corpus has at least one input"
        return index
    if index is not None and settings.limit is not None:
        raise UserError("--limit: a corpus indexed with a limit can't grow; choose another --output")
    say(f"indexing {len(new_inputs):,} input files")
    artifact.reopen()
    root = artifact.root / "_index"
    index = extend_index(root, index, new_inputs, shard_size=settings.shard_size, limit=settings.limit)
    new = index.generations[-1]
    failed = sum(new.failed_samples.values())
    if too_many_fail(failed, new.num_samples, settings.max_error_rate):
        drop_generation(index)
        raise UserError(
            error_rate_message(failed, new.num_samples, Counter(new.failed_samples), settings.max_error_rate).replace(
                "run again with --redo-errors", "run again"
            )
        )
    say(
        f"indexed {index.num_samples:,} samples: {index.num_images:,} distinct images in "
        f"{index.num_shards:,} shards, {index.num_prompts:,} prompts"
    )
    return index


def _run(
    settings: PruneSettings, artifact: Artifact, index: Index, encode: EncodeSettings, gpus: float, say: Say
) -> PruneResult:
    resume = artifact.resume(index.num_shards, deep=settings.verify)
    for reason in resume.reasons:
        say(reason)
    if settings.verify:
        say(f"verified {index.num_shards - len(resume.pending) + len(resume.reasons):,} committed shards")
    skipped = index.num_shards - len(resume.pending)
    if resume.pending and skipped:
        say(f"{skipped:,} of {index.num_shards:,} shards are there already")
    if not resume.pending:
        if not artifact.finished:
            artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "prune", "num_shards": index.num_shards})
        return PruneResult(0, skipped)
    artifact.reopen()
    artifact.forget(resume.damaged)
    run, tally = run_shards(
        artifact,
        resume.pending,
        index.num_images - resume.num_images,
        StreamSettings(
            read=ReadSettings(index, encode.model, artifact.stop_file, encode.policy),
            encode=encode,
            write=WriteSettings(artifact.root, _forms(settings.features), encode.policy),
            workers=settings.workers or _default_workers(gpus),
            gpus_per_worker=gpus,
            max_error_rate=settings.max_error_rate,
        ),
        say,
    )
    if run.done == len(resume.pending):
        artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "prune", "num_shards": index.num_shards})
    elif not run.failures and run.stopped_by is None:
        raise RuntimeError(f"{len(resume.pending)} shards were asked for but {run.done} committed")
    return PruneResult(run.done, skipped, tally.images, tally.errors, run.failures, run.stopped_by)


def _forms(features: str) -> tuple[str, ...]:
    return ("webdataset", "parquet") if features == "both" else (features,)


def _default_workers(gpus_per_worker: float) -> int:
    if gpus_per_worker > 0:
        return max(1, int(cluster_gpus() / gpus_per_worker))
    return max(1, cluster_cpus() - 1)
