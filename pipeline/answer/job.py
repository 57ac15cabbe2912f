"""The answer job: it loads, answers and commits the prompts of a pruned corpus, a shard at a time."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipeline.answer.asking import Asking, Chosen, Plan
from pipeline.answer.checks import Survey, check_metrics, check_model, check_prompts, check_stored, corpus_of, survey
from pipeline.answer.decoding import Decoding, decoding_of
from pipeline.answer.engine import ServerSettings
from pipeline.answer.engines import ENGINES, check_engine, check_prompter
from pipeline.answer.gains import StoredGains, check_gains
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.answer.served import server_of
from pipeline.answer.settings import AnswerSettings
from pipeline.answer.stage import AnswerShards
from pipeline.answer.vllm_environment import vllm_environment
from pipeline.artifact.artifact import Artifact, drop_strays
from pipeline.artifact.asked import Asked
from pipeline.budget import Budget, GainBudget, MeanBudget
from pipeline.cluster.attempts import Policy
from pipeline.cluster.device import Placement, place
from pipeline.cluster.environment import environment, own_dtype
from pipeline.cluster.following import Followed, follow
from pipeline.cluster.memory import SmallerBatches
from pipeline.cluster.outcomes import Status
from pipeline.cluster.progress import Progress
from pipeline.cluster.run_folder import run_folder
from pipeline.cluster.session import cluster_cpus, ray_session
from pipeline.cluster.stopping import StopRequest
from pipeline.cluster.stream import Stage, stream_shards
from pipeline.errors import UserError
from pipeline.families.base import torch_dtype
from pipeline.families.checkpoint import answering_identity, open_checkpoint
from pipeline.families.generation_settings import check_generation
from pipeline.families.loading import check_buildable
from pipeline.grading.grader import Grader
from pipeline.loader.shard import check_features
from pipeline.report.card import has_card, write_card
from pipeline.settings import deciding
from schemas.records import FailureRecord, JobRecord
from schemas.tables import SCHEMA_VERSION
from schemas.wording import counted

REMOTE_WORKERS = 2  # one reads a shard and writes another while the other has questions at the server


@dataclass(frozen=True)
class AnswerResult:
    """What a run did."""

    shards_done: int
    shards_skipped: int
    prompts: int = 0
    refused: int = 0  # of them
    failures: dict[int, str] = field(default_factory=dict)  # shards that were given up, with the reason
    stopped_by: int | None = None  # signal number


@dataclass(frozen=True)
class _Work:
    """What there is to answer."""

    shards: Sequence[int]
    prompts: Mapping[int, int]  # to be answered, by shard
    sources: Mapping[str, str]  # files in force that answers are made from, sha256 by path

    @classmethod
    def of(cls, found: Survey, asked: Asked | None) -> "_Work":
        if asked is None:
            return cls(range(found.num_shards), found.posable, found.hashes)
        return cls(sorted(asked.files), asked.rows, {**found.hashes, **asked.sources})


def answer_corpus(settings: AnswerSettings, say: Callable[[str], None]) -> AnswerResult:
    """Run or resume the job.

    Raises:
        UserError: bad input; nothing was harmed.
    """
    pruned = Artifact(settings.pruned)
    prune_job = pruned.require_job("prune", "--pruned")
    check_features(pruned, prune_job)
    if not pruned.finished:
        raise UserError(f"--pruned {pruned.address} is not finished; run its prune job again to complete it")
    checkpoint, family = open_checkpoint(settings.model)
    positions = settings.positions or family.positions[0]
    if positions not in family.positions:
        raise UserError(
            f"--positions {positions}: a {family.name} model numbers its kept tokens in one way only, "
            f"{family.positions[0]}; leave the option out"
        )
    check_generation(checkpoint)
    check_buildable(checkpoint)
    check_engine(settings, checkpoint, family.name, positions)
    versions = vllm_environment(settings.engine_python) if settings.engine == "vllm" else {}
    decoding = decoding_of(settings)
    model = answering_identity(checkpoint, family)
    check_model(settings.model, model, pruned, prune_job)
    found = survey(pruned)
    corpus = corpus_of(pruned)
    if corpus is None:
        raise UserError(f"--pruned {pruned.address} has lost its _index; run its prune job again to make it anew")
    artifact = Artifact(settings.output)
    asking = Asking.of(settings)
    if asking is None:
        check_prompts(pruned, found)
        check_metrics(pruned, found, settings.grader)
    else:
        asking.refuse_others(artifact)
    if isinstance(settings.budget, Budget):
        check_stored(pruned, found, settings.budget, settings.tokens)
    else:
        check_gains(settings.tokens, pruned, prune_job)
    dtype = settings.dtype if settings.dtype != "auto" else own_dtype(checkpoint)
    job = JobRecord(
        kind="answer",
        schema_version=SCHEMA_VERSION,
        settings={
            **deciding(settings),
            "dtype": dtype,
            "positions": positions,
            "json_schema": decoding.json_schema,
            "pruned": {**prune_job.settings, **prune_job.model, "corpus": corpus},
            **({} if asking is None else {"asked": asking.identity}),
        },
        model=model,
        environment={
            **environment(checkpoint),
            "pruned": pruned.address,
            **({"server": settings.server} if settings.server is not None else {}),
            **{f"engine_{name}": version for name, version in versions.items()},
            **({} if settings.prompts is None else {"prompts": settings.prompts}),
        },
    )
    asked = None if asking is None else asking.known(artifact, found)
    if artifact.finished and has_card(artifact) and (asking is None or asked is not None):
        artifact.adopt_job(job)
        work = _Work.of(found, asked)
        resume = artifact.resume(work.shards, sources=work.sources)
        if not (resume.pending or resume.strays) and artifact.manifest_holds():
            say(f"{counted(len(work.shards), 'shards', 'are')} there already in {artifact.address}; nothing to do")
            return AnswerResult(0, len(work.shards))
    server = server_of(settings, prune_job)
    if decoding.system is not None or server is not None:
        prompter = family.answerer(checkpoint, torch.device("cpu"), torch_dtype(dtype), positions, language=False)
        check_prompter(settings, server, prompter, decoding, checkpoint)
    plan = None if asking is None or asked is not None else _planned(asking, settings, pruned, found, say)
    chosen = plan if asked is None else Chosen.before(artifact, asked)
    job = _settled(settings, pruned, found, chosen, artifact, job, say)
    with artifact.locked(say) as artifact:
        budget = _budget_in_force(settings, artifact.adopt_job(job))
        before, found = found, survey(pruned, found)  # again: until the lock was held, the pruned corpus could grow
        asked = None if asking is None else asking.known(artifact, found)
        if asking is not None and asked is None:
            if plan is None or found is not before:
                plan = _planned(asking, settings, pruned, found, say)
            asked = plan.write(artifact)
        work = _Work.of(found, asked)
        num_shards = len(work.shards)
        resume = artifact.resume(work.shards, sources=work.sources)
        pending = resume.pending
        for reason in resume.reasons:
            say(reason)
        drop_strays(artifact, resume, num_shards, say)
        if resume.outdated:
            say(
                f"{counted(len(resume.outdated), 'shards', 'are')} answered again, "
                f"the first is {resume.outdated[0]:08d}: "
                f"what {pruned.address} holds for them has changed since"
            )
        if pending:
            artifact.reopen()
            artifact.forget(resume.damaged)
        run, prompts, refused = Followed(), 0, 0
        if pending:
            with ray_session(settings.ray_address, settings.num_cpus):
                progress = Progress(sum(work.prompts.get(shard, 0) for shard in pending), "prompts")
                pinned = settings.model_copy(update={"model": checkpoint.pinned})
                run = _run_shards(
                    pinned, budget, decoding, server, dtype, pruned, asked, artifact, pending, progress, say
                )
                prompts, refused = progress.done, progress.errors
        if run.done == len(pending):
            _forget_what_changed(pruned, found, asked, artifact, run, say)
            if not run.failures:
                write_card(artifact, say)
                artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "answer", "num_shards": num_shards})
        elif not run.failures and run.stopped_by is None:
            raise RuntimeError(f"{len(pending)} shards were asked for but {run.done} committed")
    return AnswerResult(run.done, num_shards - len(pending), prompts, refused, run.failures, run.stopped_by)


def _planned(
    asking: Asking, settings: AnswerSettings, pruned: Artifact, found: Survey, say: Callable[[str], None]
) -> Plan:
    """Which prompts are asked. Raises UserError where none can be, or a metric has nothing to score."""
    plan = asking.plan(pruned, found, say)
    if settings.grader != Grader():
        settings.grader.check(plan.most_references(), settings.prompts or pruned.address, plan.references_of)
    return plan


def _settled(
    settings: AnswerSettings,
    pruned: Artifact,
    found: Survey,
    chosen: Chosen | None,
    artifact: Artifact,
    job: JobRecord,
    say: Callable[[str], None],
) -> JobRecord:
    """The job record, with the threshold on gains that a mean comes to.

    The threshold is found once: it stays when the pruned corpus grows, so that what was answered holds.

    Raises:
        UserError: the output is of other settings, or images would need tokens that are not stored.
    """
    budget = settings.budget
    if isinstance(budget, Budget):
        return job
    gains = StoredGains(pruned, found, None if chosen is None else chosen.images_of)
    old = artifact.check_job(job)
    known = old.resolved if old is not None else {}
    if isinstance(budget, MeanBudget):
        threshold = known["gain_threshold"] if "gain_threshold" in known else gains.threshold(budget)
        budget = GainBudget(float(threshold), budget.min_tokens)
    spent = gains.check_stored(settings.tokens, budget)
    came_to = {"gain_threshold": budget.threshold, "images": spent.images, "mean_tokens": spent.mean}
    if old is None:
        say(
            f"--tokens {settings.tokens}: by a gain of {budget.threshold:.6g}, {spent.mean:.2f} tokens on average over "
            f"the {counted(spent.images, 'images')} that prompts ask about"
        )
    elif isinstance(settings.budget, MeanBudget) and any(known.get(name) != now for name, now in came_to.items()):
        say(
            f"--tokens {settings.tokens}: {pruned.address} has changed, and the gain of {budget.threshold:.6g} that "
            f"was found before stays; it now gives {spent.mean:.2f} tokens on average; another --output finds it anew"
        )
    return replace(job, resolved=came_to)


def _budget_in_force(settings: AnswerSettings, job: JobRecord) -> Budget | GainBudget:
    """The budget of each image, a mean by the threshold that the record in force holds."""
    budget = settings.budget
    if isinstance(budget, MeanBudget):
        return GainBudget(float(job.resolved["gain_threshold"]), budget.min_tokens)
    return budget


def _forget_what_changed(
    pruned: Artifact,
    before: Survey,
    asked: Asked | None,
    artifact: Artifact,
    run: Followed,
    say: Callable[[str], None],
) -> None:
    """Give up the shards whose pruned files were redone, or appeared, while the answers were made."""
    found = survey(pruned, before)
    if found is before:
        return
    work = _Work.of(found, asked)
    resume = artifact.resume(work.shards, sources=work.sources)
    if resume.pending:
        artifact.forget(resume.damaged)
        say(f"{counted(len(resume.pending), 'shards')} of {pruned.address} changed while they were answered")
        for shard in resume.pending:
            failure = f"{pruned.address} changed while it was answered"
            artifact.give_up(FailureRecord(shard, time.time(), Status.GIVEN_UP, "generate", failure))
            run.failures[shard] = failure


def _run_shards(
    settings: AnswerSettings,
    budget: Budget | GainBudget,
    decoding: Decoding,
    server: ServerSettings | None,
    dtype: str,
    pruned: Artifact,
    asked: Asked | None,
    artifact: Artifact,
    pending: list[int],
    progress: Progress,
    say: Callable[[str], None],
) -> Followed:
    """Answer the pending shards on the cluster, commit them to `artifact`, and tell how that ended."""
    if ENGINES[settings.engine].is_remote:
        placement, room = Placement("cpu", 0.0), REMOTE_WORKERS
    else:
        placement = place(settings.device, settings.gpus_per_worker, settings.ray_address, say)
        room = placement.workers or cluster_cpus()
    workers = min(settings.workers or room, len(pending))

    with run_folder(artifact.store) as folder:
        generate = GenerateSettings(
            pruned=pruned.store,
            output=artifact.store,
            asked=None if asked is None else asked.files,
            model=settings.model,
            dtype=dtype,
            budget=budget,
            batch_size=settings.batch_size,
            batch_tokens=settings.batch_tokens,
            decoding=decoding,
            engine=settings.engine,
            gpu_share=placement.gpus_per_worker,
            server=server.shared_by(workers) if server is not None else None,
            grader=settings.grader,
            stop_file=folder.stop_file,
            positions=settings.positions,
            device=placement.device,
            policy=Policy(settings.retries, settings.shard_timeout_sec, tries=folder.tries),
        )

        def outcomes(stop: StopRequest) -> Iterable[dict[str, Any]]:
            cpus = min(1.0, cluster_cpus() / workers)
            stage = Stage(
                AnswerShards,
                generate,
                cpus,
                processes=workers,
                num_gpus=placement.gpus_per_worker,
                python=settings.engine_python,
            )
            return stream_shards(pending, [stage], stop)

        smaller = SmallerBatches(settings.batch_size, say)

        def take(outcome: dict[str, Any], _stop: StopRequest) -> None:
            progress.add(outcome["prompts"], outcome["refused"])
            smaller.note(outcome["shard"], outcome["batch_size"])

        return follow(artifact, folder, outcomes, take, placement, say)
