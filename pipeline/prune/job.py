"""The prune job: index, then read -> decode -> encode -> score -> select -> write, a shard at a time on Ray Data."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Index, drop_generation, read_index, unindexed_inputs
from pipeline.budget import parse_budget
from pipeline.cluster.attempts import Policy
from pipeline.cluster.device import Placement, place
from pipeline.cluster.environment import check_at_least_one, check_policy, environment, own_dtype
from pipeline.cluster.run_folder import run_folder
from pipeline.cluster.session import cluster_cpus, ray_session
from pipeline.corpus.resolve import CorpusInput, resolve_corpus
from pipeline.errors import UserError
from pipeline.families.checkpoint import identity, open_checkpoint
from pipeline.index.build import extend_index
from pipeline.index.redo import forget_transient_errors
from pipeline.prune.encode import EncodeSettings
from pipeline.prune.read import ReadSettings
from pipeline.prune.select import SelectSettings, resolve_estimator
from pipeline.prune.settle import settle
from pipeline.prune.stages import StreamSettings, Tally, run_shards, share_that_failed, too_many_fail
from pipeline.prune.tune import find_batch_size
from pipeline.prune.write import WriteSettings, outcome_of
from pipeline.storage.paths import WRITE_INSTEAD, refuse_url
from schemas.records import JobRecord
from schemas.tables import SCHEMA_VERSION

Say = Callable[[str], None]
MAX_TOLD = 10  # input files told one by one

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
    device: str = "auto"
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
    left_out: dict[str, str] = field(default_factory=dict)  # input files that can't be read, with the reason


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
    artifact.check_job(job)
    index, new_inputs = _known(artifact, inputs)
    if index is not None and artifact.finished and not (new_inputs or settings.verify or settings.redo_errors):
        artifact.adopt_job(job)
        if not artifact.resume(index.num_shards).pending:
            say(f"all {index.num_shards} shards of {artifact.root} are there already; nothing to do")
            return PruneResult(0, index.num_shards)
    if note:
        say(note)
    with artifact.locked(), ray_session(settings.ray_address, settings.num_cpus):
        index, new_inputs = _known(artifact, inputs)  # again: until the lock was held, another job could change it
        placement = place(settings.device, settings.gpus_per_worker, settings.ray_address, say)
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
            device=placement.device,
        )
        encode = replace(encode, batch_size=_batch_size(settings, artifact, job, encode, placement, say))
        index = _index(settings, artifact, index, new_inputs, say)
        if settings.redo_errors:
            index = forget_transient_errors(artifact, index, say)
        left_out = {path: why for path, why in index.left_out.items() if path in {item.path for item in inputs}}
        _tell_left_out(left_out, say)
        return replace(_run(settings, artifact, index, encode, placement, not left_out, say), left_out=left_out)


def _known(artifact: Artifact, inputs: list[CorpusInput]) -> tuple[Index | None, list[CorpusInput]]:
    """The index as it is now, and the inputs that are not in it."""
    index = read_index(artifact.root / "_index")
    return index, unindexed_inputs(index, inputs, artifact.root)


def _check(settings: PruneSettings) -> None:
    refuse_url("--output", settings.output, WRITE_INSTEAD)
    parse_budget(settings.max_tokens, "--max-tokens")
    check_at_least_one(settings, ("shard_size", "workers", "limit"))
    if settings.batch_size != "auto":
        check_at_least_one(settings, ("batch_size",))
    if not 0 <= settings.max_error_rate <= 1:
        raise UserError(f"--max-error-rate {settings.max_error_rate}: expected a share between 0 and 1")
    check_policy(settings.retries, settings.shard_timeout_sec)


def _batch_size(
    settings: PruneSettings, artifact: Artifact, job: JobRecord, encode: EncodeSettings, placement: Placement, say: Say
) -> int:
    """The batch size in force; writes the job record, which holds it when it was measured."""
    old = artifact.read_job()
    if settings.batch_size != "auto":
        artifact.adopt_job(job)
        return int(settings.batch_size)
    if old is None:
        measured = find_batch_size(encode, placement.gpus_per_worker)
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
        share = share_that_failed(failed, new.num_samples, Counter(new.failed_samples), settings.max_error_rate)
        raise UserError(f"{share}; mend the cause and run again, or raise the rate")
    say(
        f"indexed {index.num_samples:,} samples: {index.num_images:,} distinct images in "
        f"{index.num_shards:,} shards, {index.num_prompts:,} prompts"
    )
    if new.failed_prompts:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in new.failed_prompts.items())
        say(f"{sum(new.failed_prompts.values()):,} prompts can't be posed: {reasons}; the errors table says why")
    if (note := new.prompts_note()) is not None:
        say(note)
    if new.unread_bytes:
        say(f"{new.unread_bytes:,} bytes of tars were not read, see the errors table")
    return index


def _tell_left_out(left_out: dict[str, str], say: Say) -> None:
    for why in list(left_out.values())[:MAX_TOLD]:
        say(f"left out: {why}")
    if left_out:
        say(
            f"{len(left_out):,} input files are left out, because their storage does not give their bytes; "
            "the next run tries them again, and without them in --corpus the output can be finished"
        )


def _run(
    settings: PruneSettings,
    artifact: Artifact,
    index: Index,
    encode: EncodeSettings,
    placement: Placement,
    whole_corpus: bool,
    say: Say,
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
        if whole_corpus and not artifact.finished:
            _finish(artifact, index)
        return PruneResult(0, skipped)
    artifact.reopen()
    artifact.forget(resume.damaged)
    with run_folder(artifact.root) as folder:
        policy = Policy(settings.retries, settings.shard_timeout_sec, tries=folder.tries)
        stream = StreamSettings(
            read=ReadSettings(index, encode.model, folder.stop_file, policy),
            encode=replace(encode, policy=policy),
            write=WriteSettings(artifact.root, _forms(settings.features), policy),
            workers=settings.workers or placement.workers or max(1, cluster_cpus() - 1),
            placement=placement,
            max_error_rate=settings.max_error_rate,
        )
        num_images = index.num_images - resume.num_images
        before = _committed(artifact) if settings.redo_errors else None
        run, tally = run_shards(artifact, folder, resume.pending, num_images, stream, say, before)
    errors = tally.errors
    if run.done == len(resume.pending):
        if whole_corpus:
            errors += _finish(artifact, index)
    elif not run.failures and run.stopped_by is None:
        raise RuntimeError(f"{len(resume.pending)} shards were asked for but {run.done} committed")
    return PruneResult(run.done, skipped, tally.images, errors, run.failures, run.stopped_by)


def _finish(artifact: Artifact, index: Index) -> int:
    """Settle what shards take from each other and mark the artifact as complete; errors that came up only now."""
    gained = settle(artifact, index)
    artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "prune", "num_shards": index.num_shards})
    return gained


def _committed(artifact: Artifact) -> Tally:
    """What the committed shards hold: a redo runs just the worst shards, whose own error rate says nothing."""
    tally = Tally()
    for record in artifact.commits():
        tally.add(outcome_of(record))
    return tally


def _forms(features: str) -> tuple[str, ...]:
    return ("webdataset", "parquet") if features == "both" else (features,)
