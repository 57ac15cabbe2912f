"""The prune job: index, then read -> decode -> encode -> score -> select -> write, a shard at a time on Ray Data."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipeline.artifact.artifact import Artifact, drop_strays
from pipeline.artifact.index import Index
from pipeline.cluster.attempts import Policy
from pipeline.cluster.device import Placement, place
from pipeline.cluster.run_folder import run_folder
from pipeline.cluster.session import cluster_cpus, ray_session
from pipeline.index.redo import forget_transient_errors
from pipeline.prune.encode import EncodeSettings
from pipeline.prune.indexing import complete_index, known, left_out
from pipeline.prune.plan import Plan, plan
from pipeline.prune.read import ReadSettings
from pipeline.prune.settings import PruneSettings
from pipeline.prune.settle import settle
from pipeline.prune.stages import StreamSettings, Tally, run_shards
from pipeline.prune.tune import find_batch_size
from pipeline.prune.write import WriteSettings, outcome_of
from pipeline.report.card import has_card, write_card
from schemas.records import JobRecord
from schemas.tables import SCHEMA_VERSION
from schemas.wording import counted

Say = Callable[[str], None]


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
    usable: int = 0  # samples of all committed shards that did not fail


def prune_corpus(settings: PruneSettings, say: Say) -> PruneResult:
    """Run or resume the job.

    Args:
        settings: of the job.
        say: takes one line for the user.

    Raises:
        UserError: bad input; nothing was harmed.
    """
    planned = plan(settings)
    artifact = Artifact(settings.output)
    artifact.check_job(planned.job)
    if not (settings.verify or settings.redo_errors) and (done := _nothing_to_do(artifact, planned, say)) is not None:
        return done
    for note in (*planned.job.notes, *planned.notes):
        say(note)
    with artifact.locked(say) as artifact, ray_session(settings.ray_address, settings.num_cpus):
        placement = place(settings.device, settings.gpus_per_worker, settings.ray_address, say)
        job = artifact.adopt_job(planned.job)
        index = complete_index(settings, artifact, planned.inputs, planned.model, say)
        encode = planned.encode(placement.device, _batch_size(settings, artifact, job, index, planned, placement, say))
        if settings.redo_errors:
            index = forget_transient_errors(artifact, index, say)
        missing = left_out(index, planned.inputs, say)
        return replace(
            _run(settings, artifact, index, encode, planned.forms, placement, not missing, say), left_out=missing
        )


def _nothing_to_do(artifact: Artifact, planned: Plan, say: Say) -> PruneResult | None:
    """The result of a job whose shards are all there already, which the user is told; None where work is left."""
    index, new_inputs = known(artifact, planned.inputs)
    if index is None or new_inputs or not (artifact.finished and has_card(artifact)):
        return None
    artifact.adopt_job(planned.job)
    resume = artifact.resume(index.num_shards)
    if resume.pending or resume.strays or not artifact.manifest_holds():
        return None
    say(f"{counted(index.num_shards, 'shards', 'are')} there already in {artifact.address}; nothing to do")
    return PruneResult(0, index.num_shards, usable=resume.num_ok)


def _batch_size(
    settings: PruneSettings,
    artifact: Artifact,
    job: JobRecord,
    index: Index,
    planned: Plan,
    placement: Placement,
    say: Say,
) -> int:
    """The batch size in force: as asked for, or as it was measured once, which the job record then holds."""
    if settings.batch_size != "auto":
        return int(settings.batch_size)
    if "batch_size" not in job.resolved:
        unmeasured = planned.encode(placement.device, batch_size=1)
        measured = find_batch_size(unmeasured, index, placement.gpus_per_worker)
        say(f"batch size {measured}, the fastest with large images of this corpus; kept for this output")
        job = artifact.resolve(job, batch_size=measured)
    return int(job.resolved["batch_size"])


def _run(
    settings: PruneSettings,
    artifact: Artifact,
    index: Index,
    encode: EncodeSettings,
    forms: tuple[str, ...],
    placement: Placement,
    whole_corpus: bool,
    say: Say,
) -> PruneResult:
    """Prune the shards that are not committed; with the whole corpus in the index the artifact is finished."""
    resume = artifact.resume(index.num_shards, deep=settings.verify)
    for reason in resume.reasons:
        say(reason)
    drop_strays(artifact, resume, index.num_shards, say)
    if settings.verify:
        verified = index.num_shards - len(resume.pending) + len(resume.reasons)
        say(f"verified {counted(verified, 'committed shards')}")
    skipped = index.num_shards - len(resume.pending)
    if resume.pending and skipped:
        say(f"{skipped:,} of {index.num_shards:,} shards are there already")
    if not resume.pending:
        holds = artifact.manifest_holds()
        if whole_corpus and not (holds and has_card(artifact)):
            if artifact.finished and not holds:
                say(f"the manifest of {artifact.address} is damaged or not that of its shards: it is written again")
            _finish(artifact, index, say)
        return PruneResult(0, skipped, usable=resume.num_ok)
    artifact.reopen()
    artifact.forget(resume.damaged)
    with run_folder(artifact.store) as folder:
        policy = Policy(settings.retries, settings.shard_timeout_sec, tries=folder.tries)
        stream = StreamSettings(
            read=ReadSettings(index, encode.model, folder.stop_file, policy),
            encode=replace(encode, policy=policy, stop_file=folder.stop_file),
            write=WriteSettings(artifact.store, forms, policy),
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
            errors += _finish(artifact, index, say)
    elif not run.failures and run.stopped_by is None:
        raise RuntimeError(f"{len(resume.pending)} shards were asked for but {run.done} committed")
    usable = resume.num_ok + tally.samples - tally.failed_samples
    return PruneResult(run.done, skipped, tally.images, errors, run.failures, run.stopped_by, usable=usable)


def _finish(artifact: Artifact, index: Index, say: Say) -> int:
    """Settle what shards take from each other and mark the artifact as complete; errors that came up only now."""
    gained = settle(artifact, index)
    write_card(artifact, say)
    artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "prune", "num_shards": index.num_shards})
    return gained


def _committed(artifact: Artifact) -> Tally:
    """What the committed shards hold: a redo runs just the worst shards, whose own error rate says nothing."""
    tally = Tally()
    for record in artifact.commits():
        tally.add(outcome_of(record))
    return tally
