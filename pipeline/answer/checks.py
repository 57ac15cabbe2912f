"""What must be true before any prompt is answered: the model that pruned, prompts to answer, enough tokens stored."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import duckdb

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import read_index
from pipeline.artifact.tables import dataset_of
from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.grading.grader import Grader
from pipeline.grading.survey import references_in, references_of
from schemas.records import JobRecord, to_json
from schemas.statuses import OK, Counted, why_not_posed
from schemas.tables import PROMPTS, SELECTIONS
from schemas.wording import counted

# What must be the same in the model that answers as in the one that pruned. The image processor plays no part any more.
MODEL_PARTS = ("family", "config", "weights", "projector")


@dataclass(slots=True)
class Survey:
    """What the commit records of a pruned artifact say, after one reading of all of them."""

    tags: dict[int, str]  # of the commit records that were read
    num_shards: int = 0
    hashes: dict[str, str] = field(default_factory=dict)  # sha256 of each committed file, by its path in the artifact
    counts: Counter[str] = field(default_factory=Counter)  # of all shards together
    posable: dict[int, int] = field(default_factory=dict)  # number of prompts that can be posed, by shard
    selections: list[str] = field(default_factory=list)  # keys of the selections of each shard
    prompts: list[str] = field(default_factory=list)  # and of its prompts


def survey(pruned: Artifact, earlier: Survey | None = None) -> Survey:
    """Read every commit record once, unless an earlier survey has read the same ones.

    Raises:
        UserError: a record is damaged, differs from the manifest, or names selections that are not there.
    """
    tags = pruned.commit_tags()
    if earlier is not None and earlier.tags == tags:
        return earlier
    found, listed = Survey(tags), pruned.listing()
    for record in pruned.checked_commits():
        found.num_shards = record.shard + 1
        found.hashes.update((entry.path, entry.sha256) for entry in record.files.values())
        found.counts.update(record.counts)
        found.posable[record.shard] = record.counts.get(Counted.PROMPTS.named(OK), 0)
        found.selections.append(pruned.file_of(record, "selections", listed).path)
        found.prompts.append(pruned.file_of(record, "prompts", listed).path)
    return found


def check_model(option: str, model: dict[str, Any], pruned: Artifact, prune_job: JobRecord) -> None:
    """Refuse another model than the one that pruned.

    Args:
        option: the model as the user named it.
        model: its identity on the answering side.
        pruned: the artifact to answer.
        prune_job: its job record.

    Raises:
        UserError: naming the part that differs.
    """
    for part in MODEL_PARTS:
        if model[part] != prune_job.model.get(part):
            raise UserError(
                f"--model {option} is not the model that pruned {pruned.address}: its {part} differs; "
                "features only fit the language model they were projected for"
            )


def check_prompts(pruned: Artifact, found: Survey) -> None:
    """Refuse an artifact in which there is nothing to answer.

    Raises:
        UserError: saying what the corpus had in the place of prompts.
    """
    counts = found.counts
    if counts[Counted.PROMPTS.named(OK)]:
        return
    if counts["prompts"]:
        why = why_not_posed(dict(sorted(Counted.PROMPTS.per_status(counts).items())))
        raise UserError(
            f"--pruned {pruned.address}: none of {counted(counts['prompts'], 'prompts')} can be posed: {why}"
        )
    index = read_index(pruned.store)
    notes = [note for g in index.generations if (note := g.prompts_note())] if index is not None else []
    raise UserError("; ".join([f"--pruned {pruned.address} holds no prompt to answer", *notes]))


def check_metrics(pruned: Artifact, found: Survey, grader: Grader) -> None:
    """Refuse metrics for prompts of a type that the artifact does not hold, or that have too few references.

    Raises:
        UserError: naming the types that there are, or what the metric takes.
    """
    if found.prompts and grader != Grader():
        prompts = dataset_of(pruned.store, found.prompts, PROMPTS)
        grader.check(references_in(prompts), pruned.address, partial(references_of, prompts))


def check_stored(pruned: Artifact, found: Survey, budget: Budget, text: str) -> None:
    """Refuse a budget beyond what the artifact holds.

    Args:
        pruned: the artifact to answer.
        found: its survey.
        budget: the one to answer at.
        text: the same as the user wrote it.

    Raises:
        UserError: naming the smallest number of tokens that an image which falls short has.
    """
    if budget.kind == "all" or not found.selections:
        return
    wanted = f"floor({budget.value} * num_tokens + 0.5)" if budget.kind == "ratio" else str(int(budget.value))
    with duckdb.connect() as db:
        db.register("selections", dataset_of(pruned.store, found.selections, SELECTIONS))
        ((images, fewest),) = db.sql(
            f"select count(*), min(num_kept) from selections where num_kept < least(num_tokens, greatest(1, {wanted}))"
        ).fetchall()
    if images:
        raise UserError(
            f"--tokens {text}: {counted(images, 'images', 'have')} fewer tokens stored in {pruned.address} "
            f"(down to {fewest}); ask for fewer, or prune again with a larger --max-tokens"
        )


def corpus_of(pruned: Artifact) -> dict[str, Any] | None:
    """The input files that the artifact began with, which stay the same when shards are redone or added."""
    index = read_index(pruned.store)
    if index is None:
        return None
    inputs = [[item.path, item.size_bytes] for item in index.generations[0].inputs]
    return {
        "first": inputs[0][0],
        "inputs": len(inputs),
        "sha256": hashlib.sha256(to_json({"inputs": inputs})).hexdigest(),
    }
