"""The answer job: a pruned corpus -> load -> generate -> write, a shard at a time on Ray Data, with its own commits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import ray
from ray.data import ActorPoolStrategy

from pipeline.artifact import Artifact
from pipeline.budget import Budget, parse_budget
from pipeline.checkpoint import answering_identity, open_checkpoint
from pipeline.errors import UserError
from pipeline.following import Followed, follow
from pipeline.generate import AnswerShards, GenerateSettings
from pipeline.generation_settings import check_generation
from pipeline.job_settings import check_at_least_one, environment, own_dtype
from pipeline.progress import Progress
from pipeline.runtime import cluster_cpus, cluster_gpus, map_shards, ray_session
from pipeline.stopping import StopRequest
from schemas.records import JobRecord
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
    budget = parse_budget(settings.tokens, "--tokens")
    check_at_least_one(settings, ("batch_size", "max_new_tokens", "workers"))
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
            "pruned": {**prune_job.settings, **prune_job.model},
        },
        model=model,
        environment=environment(checkpoint),
    )
    shards = pruned.committed_shards()
    if artifact.finished:
        artifact.adopt_job(job)
        if not artifact.resume(len(shards)).pending:
            say(f"all {len(shards)} shards of {artifact.root} are there already; nothing to do")
            return AnswerResult(0, len(shards))
    with artifact.locked():
        artifact.adopt_job(job)
        resume = artifact.resume(len(shards))
        pending = resume.pending
        for reason in resume.reasons:
            say(reason)
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
            artifact.finish({"schema_version": SCHEMA_VERSION, "kind": "answer", "num_shards": len(shards)})
        elif not run.failures and run.stopped_by is None:
            raise RuntimeError(f"{len(pending)} shards were asked for but {run.done} committed")
    return AnswerResult(run.done, len(shards) - len(pending), prompts, run.failures, run.stopped_by)


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
    gpus = settings.gpus_per_worker if settings.gpus_per_worker is not None else float(cluster_gpus() > 0)
    workers = settings.workers or (max(1, int(cluster_gpus() / gpus)) if gpus else cluster_cpus())
    generate = GenerateSettings(
        pruned=pruned.root,
        output=artifact.root,
        model=settings.model,
        dtype=dtype,
        budget=budget,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        positions=settings.positions,
        use_gpu=gpus > 0,
    )
    total = 0
    wanted = set(pending)
    for record in pruned.commits():
        if record.shard in wanted:
            total += record.counts.get("prompts.ok", 0)
    progress = Progress(total, "prompts")

    def outcomes(_stop: StopRequest) -> Iterable[dict[str, Any]]:
        numbers = ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending))
        return map_shards(
            numbers,
            AnswerShards,
            compute=ActorPoolStrategy(size=min(workers, len(pending))),
            num_cpus=1,
            num_gpus=gpus or None,
            fn_constructor_args=(generate,),
        ).iter_rows()

    run = follow(artifact, outcomes, lambda row, _stop: progress.add(row["prompts"], row["refused"]), say)
    return run, progress.done


def _check_stored(pruned: Artifact, budget: Budget, text: str) -> None:
    """Refuse a budget beyond what the artifact holds, naming the largest that it does."""
    wanted = f"floor({budget.value} * num_tokens + 0.5)" if budget.kind == "ratio" else str(int(budget.value))
    files = pruned.files_of("selections")
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
