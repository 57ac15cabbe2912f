"""The answer job: a pruned corpus -> load -> generate -> write, a shard at a time on Ray Data, with its own commits."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

from pipeline.answer.generation_settings import check_generation
from pipeline.answer.stage import AnswerShards, GenerateSettings
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import read_index
from pipeline.budget import Budget, parse_budget
from pipeline.cluster.attempts import Policy
from pipeline.cluster.device import place
from pipeline.cluster.environment import check_at_least_one, check_policy, environment, own_dtype
from pipeline.cluster.following import Followed, follow
from pipeline.cluster.progress import Progress
from pipeline.cluster.run_folder import run_folder
from pipeline.cluster.session import cluster_cpus, ray_session
from pipeline.cluster.stopping import StopRequest
from pipeline.cluster.stream import Stage, stream_shards
from pipeline.errors import UserError
from pipeline.families.checkpoint import answering_identity, open_checkpoint
from pipeline.storage.paths import READ_INSTEAD, WRITE_INSTEAD, refuse_url
from schemas.records import JobRecord, to_json
from schemas.statuses import OK, Counted
from schemas.tables import SCHEMA_VERSION
from schemas.views import quoted

# What must be the same in the model that answers as in the one that pruned. The image processor plays no part any more.
_MODEL_PARTS = ("family", "config", "weights", "projector")


@dataclass(frozen=True)
class AnswerSettings:
    """Everything `jobs/answer_corpus.py` can be told."""

    pruned: str
    model: str
    output: str
    tokens: str = "all"
    dtype: str = "auto"
    batch_size: int = 32
    max_new_tokens: int = 64
    positions: str | None = None
    # how the work is done
    workers: int | None = None
    gpus_per_worker: float | None = None
    device: str = "auto"
    retries: int = 2
    shard_timeout_sec: float = 3600.0
    ray_address: str | None = None
    num_cpus: int | None = None


@dataclass(frozen=True)
class AnswerResult:
    """What a run did."""

    shards_done: int
    shards_skipped: int
    prompts: int = 0
    failures: dict[int, str] = field(default_factory=dict)  # shards that were given up, with the reason
    stopped_by: int | None = None  # signal number


def answer_corpus(settings: AnswerSettings, say: Callable[[str], None]) -> AnswerResult:
    """Run or resume the job.

    Raises:
        UserError: bad input; nothing was harmed.
    """
    refuse_url("--pruned", settings.pruned, READ_INSTEAD)
    refuse_url("--output", settings.output, WRITE_INSTEAD)
    budget = parse_budget(settings.tokens, "--tokens")
    check_at_least_one(settings, ("batch_size", "max_new_tokens", "workers"))
    check_policy(settings.retries, settings.shard_timeout_sec)
    pruned = Artifact(Path(settings.pruned).resolve())
    prune_job = pruned.require_job("prune", "--pruned")
    if not pruned.finished:
        raise UserError(f"--pruned {pruned.root} is not finished; run jobs.prune_corpus on it again to complete it")
    checkpoint, family = open_checkpoint(settings.model)
    positions = settings.positions or family.positions[0]
    if positions not in family.positions:
        raise UserError(
            f"--positions {positions}: a {family.name} model numbers its kept tokens in one way only, "
            f"{family.positions[0]}; leave the option out"
        )
    check_generation(checkpoint)
    model = answering_identity(checkpoint, family)
    for part in _MODEL_PARTS:
        if model[part] != prune_job.model.get(part):
            raise UserError(
                f"--model {settings.model} is not the model that pruned {pruned.root}: its {part} differs; "
                "features only fit the language model they were projected for"
            )
    _check_prompts(pruned)
    if budget.kind != "all":
        _check_stored(pruned, budget, settings.tokens)
    artifact = Artifact(Path(settings.output).resolve())
    dtype = settings.dtype if settings.dtype != "auto" else own_dtype(checkpoint.config)
    job = JobRecord(
        kind="answer",
        schema_version=SCHEMA_VERSION,
        settings={
            "tokens": settings.tokens,
            "dtype": dtype,
            "batch_size": settings.batch_size,
            "max_new_tokens": settings.max_new_tokens,
            "positions": positions,
            "pruned": {**prune_job.settings, **prune_job.model, "corpus": _corpus_of(pruned)},
        },
        model=model,
        environment=environment(checkpoint),
    )
    num_shards, sources = pruned.committed_hashes()
    if artifact.finished:
        artifact.adopt_job(job)
        if not artifact.resume(num_shards, sources=sources).pending:
            say(f"all {num_shards} shards of {artifact.root} are there already; nothing to do")
            return AnswerResult(0, num_shards)
    with artifact.locked():
        artifact.adopt_job(job)
        num_shards, sources = pruned.committed_hashes()  # again: until the lock was held, the pruned corpus could grow
        resume = artifact.resume(num_shards, sources=sources)
        pending = resume.pending
        for reason in resume.reasons:
            say(reason)
        if resume.outdated:
            say(
                f"{len(resume.outdated):,} shards are answered again, the first is {resume.outdated[0]:08d}: "
                f"what {pruned.root} holds for them has changed since"
            )
        if pending:
            artifact.reopen()
            artifact.forget(resume.damaged)
        run, prompts = Followed(), 0
        if pending:
            with ray_session(settings.ray_address, settings.num_cpus):
                run, prompts = _run_shards(
                    replace(settings, model=checkpoint.pinned), budget, dtype, pruned, artifact, pending, say
                )
        if run.done == len(pending):
            _forget_what_changed(pruned, artifact, run, say)
            if not run.failures:
                artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "answer", "num_shards": num_shards})
        elif not run.failures and run.stopped_by is None:
            raise RuntimeError(f"{len(pending)} shards were asked for but {run.done} committed")
    return AnswerResult(run.done, num_shards - len(pending), prompts, run.failures, run.stopped_by)


def _corpus_of(pruned: Artifact) -> dict[str, Any] | None:
    """The input files that the artifact began with: they stay the same when shards are redone or added."""
    index = read_index(pruned.root / "_index")
    if index is None:
        return None
    inputs = [[item["path"], item["size_bytes"]] for item in index.generations[0].inputs]
    return {
        "first": inputs[0][0],
        "inputs": len(inputs),
        "sha256": hashlib.sha256(to_json({"inputs": inputs})).hexdigest(),
    }


def _forget_what_changed(pruned: Artifact, artifact: Artifact, run: Followed, say: Callable[[str], None]) -> None:
    """Give up the shards whose pruned files were redone, or came, while the answers were made."""
    num_shards, sources = pruned.committed_hashes()
    resume = artifact.resume(num_shards, sources=sources)
    if resume.pending:
        artifact.forget(resume.damaged)
        say(f"{len(resume.pending):,} shards of {pruned.root} changed while they were answered")
        run.failures.update((shard, f"{pruned.root} changed while it was answered") for shard in resume.pending)


def _run_shards(
    settings: AnswerSettings,
    budget: Budget,
    dtype: str,
    pruned: Artifact,
    artifact: Artifact,
    pending: list[int],
    say: Callable[[str], None],
) -> tuple[Followed, int]:
    """Answer the pending shards; how that ended, and the number of prompts answered."""
    placement = place(settings.device, settings.gpus_per_worker, settings.ray_address, say)
    workers = min(settings.workers or placement.workers or cluster_cpus(), len(pending))
    total = 0
    wanted = set(pending)
    for record in pruned.commits():
        if record.shard in wanted:
            total += record.counts.get(Counted.PROMPTS.named(OK), 0)
    progress = Progress(total, "prompts")

    with run_folder(artifact.root) as folder:
        generate = GenerateSettings(
            pruned=pruned.root,
            output=artifact.root,
            model=settings.model,
            dtype=dtype,
            budget=budget,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            stop_file=folder.stop_file,
            positions=settings.positions,
            device=placement.device,
            policy=Policy(settings.retries, settings.shard_timeout_sec, tries=folder.tries),
        )

        def outcomes(stop: StopRequest) -> Iterable[dict[str, Any]]:
            cpus = min(1.0, cluster_cpus() / workers)
            stage = Stage(AnswerShards, generate, cpus, processes=workers, num_gpus=placement.gpus_per_worker)
            return stream_shards(pending, [stage], stop)

        def take(outcome: dict[str, Any], _stop: StopRequest) -> None:
            progress.add(outcome["prompts"], outcome["refused"])

        run = follow(artifact, folder, outcomes, take, placement, say)
    return run, progress.done


def _check_prompts(pruned: Artifact) -> None:
    """Refuse an artifact in which there is nothing to answer, saying what the corpus had in the place of prompts."""
    counts: Counter[str] = Counter()
    for record in pruned.commits():
        counts.update(record.counts)
    if counts[Counted.PROMPTS.named(OK)]:
        return
    if counts["prompts"]:
        statuses = sorted(Counted.PROMPTS.per_status(counts).items())
        why = ", ".join(f"{status} ({count:,})" for status, count in statuses)
        raise UserError(f"--pruned {pruned.root}: none of its {counts['prompts']:,} prompts can be posed: {why}")
    index = read_index(pruned.root / "_index")
    notes = [note for g in index.generations if (note := g.prompts_note())] if index is not None else []
    raise UserError("; ".join([f"--pruned {pruned.root} holds no prompt to answer", *notes]))


def _check_stored(pruned: Artifact, budget: Budget, text: str) -> None:
    """Refuse a budget beyond what the artifact holds, naming the largest that it does."""
    wanted = f"floor({budget.value} * num_tokens + 0.5)" if budget.kind == "ratio" else str(int(budget.value))
    files = [pruned.file_of(record, "selections") for record in pruned.commits()]
    if not files:
        return
    ((images, fewest),) = (
        duckdb.connect()
        .sql(
            f"select count(*), min(num_kept) from read_parquet([{', '.join(map(quoted, files))}]) "
            f"where num_kept < least(num_tokens, greatest(1, {wanted}))"
        )
        .fetchall()
    )
    if images:
        raise UserError(
            f"--tokens {text}: {images:,} images of {pruned.root} have fewer tokens stored (down to {fewest}); "
            "ask for fewer, or prune again with a larger --max-tokens"
        )
