"""The job that chooses a budget: prune a sample with all tokens, answer it at every budget, test, say which is safe."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.answer.checks import Survey, check_metrics, survey
from pipeline.artifact.artifact import Artifact, drop_strays
from pipeline.artifact.tables import dataset_of
from pipeline.budget import parse_budget
from pipeline.choosing.settings import ChooseSettings
from pipeline.choosing.stage import TrySettings, TryShards, runs_of
from pipeline.choosing.verdict import decide, trials_of
from pipeline.cluster.attempts import Policy
from pipeline.cluster.device import place
from pipeline.cluster.environment import environment, own_dtype
from pipeline.cluster.following import Followed, follow
from pipeline.cluster.progress import Progress
from pipeline.cluster.run_folder import run_folder
from pipeline.cluster.session import cluster_cpus, ray_session
from pipeline.cluster.stopping import StopRequest
from pipeline.cluster.stream import Stage, stream_shards
from pipeline.errors import UserError
from pipeline.families.checkpoint import answering_identity, open_checkpoint
from pipeline.families.generation_settings import check_generation
from pipeline.prune.job import prune_corpus
from pipeline.prune.settings import CorpusSettings, PruneSettings
from pipeline.settings import deciding
from schemas.choice import Choice
from schemas.columns import schema_of
from schemas.records import JobRecord, to_json
from schemas.tables import SCHEMA_VERSION, SELECTIONS
from schemas.trials import TrialRow
from schemas.wording import counted

PRUNED, TRIALS, CHOICE = "pruned", "trials", "choice.json"
_SCHEMA = schema_of(TrialRow)

Say = Callable[[str], None]


@dataclass(frozen=True)
class ChooseResult:
    """What a run did."""

    choice: Choice | None  # None where shards are missing
    failures: dict[int, str] = field(default_factory=dict)  # shards that were given up, with the reason
    stopped_by: int | None = None  # signal number
    left_out: dict[str, str] = field(default_factory=dict)  # input files that can't be read, with the reason


def choose_budget(settings: ChooseSettings, say: Say) -> ChooseResult:
    """Run or resume the job. The output holds `pruned/`, `trials/` and `choice.json`.

    Raises:
        UserError: bad input; nothing was harmed.
    """
    for text in settings.budgets:
        if parse_budget(text, "--tokens").kind == "all":
            raise UserError("--tokens all: all tokens are what budgets are compared with; name smaller ones")
        if settings.budgets.count(text) > 1:
            raise UserError(f"--tokens {text} is given more than once; leave the others out")
    other = Artifact(settings.output).read_job()
    if other is not None:
        raise UserError(
            f"--output {settings.output} is the output of another job ({other.kind}); choose an empty or new folder"
        )
    checkpoint, family = open_checkpoint(settings.model)
    check_generation(checkpoint)
    artifact = Artifact(_inside(settings, TRIALS))
    with ExitStack() as stack:
        if not artifact.finished:  # else there is mostly nothing to do, for which Ray need not start
            stack.enter_context(ray_session(settings.ray_address, settings.num_cpus))
        pruning = prune_corpus(_pruning(settings), say)
        if pruning.failures or pruning.stopped_by or pruning.left_out:
            return ChooseResult(None, pruning.failures, pruning.stopped_by, pruning.left_out)
        pruned = Artifact(_inside(settings, PRUNED))
        found = survey(pruned)
        check_metrics(pruned, found, settings.grader)
        _check_budgets(settings, pruned, found)
        dtype = settings.dtype if settings.dtype != "auto" else own_dtype(checkpoint)
        decided = {name: value for name, value in deciding(settings).items() if name != "tolerance"}
        job = JobRecord(
            kind="choose",
            schema_version=SCHEMA_VERSION,
            settings={**decided, "tokens": list(settings.budgets), "dtype": dtype},
            model=answering_identity(checkpoint, family),
            environment={**environment(checkpoint), "pruned": pruned.address},
        )
        with artifact.locked(say) as artifact:
            artifact.adopt_job(job)
            resume = artifact.resume(found.num_shards, sources=found.hashes)
            for reason in resume.reasons:
                say(reason)
            drop_strays(artifact, resume, found.num_shards, say)
            run = Followed()
            if resume.pending:
                artifact.reopen()
                artifact.forget(resume.damaged)
                progress = Progress(sum(found.posable.get(shard, 0) for shard in resume.pending), "prompts")
                pinned = settings.model_copy(update={"model": checkpoint.pinned})
                with ray_session(settings.ray_address, settings.num_cpus):
                    run = _try(pinned, dtype, pruned, artifact, resume.pending, progress, say)
            if run.failures or run.stopped_by is not None:
                return ChooseResult(None, run.failures, run.stopped_by)
            if resume.pending or not artifact.manifest_holds():
                artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "choose", "num_shards": found.num_shards})
    choice = decide(settings, trials_of(_table(artifact), runs_of(settings.selector), settings.budgets))
    Artifact(settings.output).store.put(CHOICE, to_json(choice.model_dump(mode="json")))
    return ChooseResult(choice)


def _inside(settings: ChooseSettings, folder: str) -> str:
    return f"{settings.output.rstrip('/')}/{folder}"


def _pruning(settings: ChooseSettings) -> PruneSettings:
    """The prune job on the sample: every token is ranked and kept, as the model gives it."""
    shared = {name: getattr(settings, name) for name in CorpusSettings.model_fields if name != "output"}
    return PruneSettings(
        **shared,
        output=_inside(settings, PRUNED),
        max_tokens="all",
        selector=settings.selector,
        estimator=settings.estimator,
        seed=settings.seed,
        sample=settings.sample,
        sample_seed=settings.seed,
        shard_size=settings.shard_size,
    )


def _check_budgets(settings: ChooseSettings, pruned: Artifact, found: Survey) -> None:
    """Refuse budgets that prune nothing, or the same as another.

    Raises:
        UserError: naming them.
    """
    column = dataset_of(pruned.store, found.selections, SELECTIONS).to_table(columns=["num_tokens"])["num_tokens"]
    counts = sorted(set(column.to_pylist()))
    owner_of: dict[tuple[int, ...], str] = {}
    for text in settings.budgets:
        budget = parse_budget(text, "--tokens")
        kept = tuple(budget.of(num_tokens) for num_tokens in counts)
        if kept == tuple(counts):
            raise UserError(
                f"--tokens {text}: no image of the sample has more tokens, so it prunes nothing; ask for fewer"
            )
        if owner_of.setdefault(kept, text) != text:
            raise UserError(
                f"--tokens {owner_of[kept]} and {text} keep as many tokens of every image; leave one of them out"
            )


def _try(
    settings: ChooseSettings,
    dtype: str,
    pruned: Artifact,
    artifact: Artifact,
    pending: list[int],
    progress: Progress,
    say: Say,
) -> Followed:
    """Answer the pending shards on the cluster, and tell how that ended."""
    placement = place(settings.device, settings.gpus_per_worker, settings.ray_address, say)
    workers = min(settings.workers or placement.workers or cluster_cpus(), len(pending))
    runs = len(runs_of(settings.selector)) * len(settings.budgets)
    say(f"answering with all tokens, and {counted(runs, 'times')} with fewer")
    with run_folder(artifact.store) as folder:
        trying = TrySettings(
            pruned=pruned.store,
            output=artifact.store,
            model=settings.model,
            dtype=dtype,
            selector=settings.selector,
            budgets=settings.budgets,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            grader=settings.grader,
            stop_file=folder.stop_file,
            device=placement.device,
            policy=Policy(settings.retries, settings.shard_timeout_sec, tries=folder.tries),
        )

        def outcomes(stop: StopRequest) -> Iterable[dict[str, Any]]:
            cpus = min(1.0, cluster_cpus() / workers)
            stage = Stage(TryShards, trying, cpus, processes=workers, num_gpus=placement.gpus_per_worker)
            return stream_shards(pending, [stage], stop)

        def take(outcome: dict[str, Any], _stop: StopRequest) -> None:
            progress.add(outcome["prompts"], outcome["refused"])

        return follow(artifact, folder, outcomes, take, placement, say)


def _table(artifact: Artifact) -> pa.Table:
    """All trials."""
    listed = artifact.listing()
    keys = [artifact.file_of(record, "trials", listed).path for record in artifact.checked_commits()]
    return dataset_of(artifact.store, keys, _SCHEMA).to_table()
