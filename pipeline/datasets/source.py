"""A finished pruned artifact, checked and counted once, from which any process can read samples."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.answer.checks import check_prompts, check_stored, survey
from pipeline.answer.gains import StoredGains, check_gains
from pipeline.artifact.artifact import Artifact
from pipeline.budget import Budget, GainBudget, MeanBudget, parse_answer_budget
from pipeline.errors import UserError
from pipeline.families.base import KeptImage, torch_dtype
from pipeline.loader.shard import ShardLoader, check_features
from pipeline.storage import Store
from schemas.records import RecordError
from schemas.stored import StoredPrompt
from schemas.wording import counted


@dataclass(frozen=True, eq=False)
class Source:
    """What reading samples takes, in any process. No file is held open."""

    store: Store
    tokens: str  # the budget as it was asked for
    budget: Budget | GainBudget
    dtype: torch.dtype | None  # of the features that are given; None: as stored, int8 as float32
    shards: NDArray[np.int64]  # that hold prompts which can be posed
    counts: NDArray[np.int64]  # of these prompts, by shard
    sha256: str  # over the hashes of all committed files: of another artifact, or a grown one, it differs

    @property
    def address(self) -> str:
        """Where the artifact lies."""
        return self.store.locate()

    def read(self, place: int) -> list[tuple[StoredPrompt, KeptImage | None]]:
        """All prompts of a shard with their images, in the order of the corpus.

        Prompts about the same image have the same object. None stands for an image that could not be pruned, which
        prompts can be about in a corpus that has grown.

        Args:
            place: of the shard among `shards`.

        Raises:
            UserError: the artifact is not any more what it was when it was opened.
        """
        shard = int(self.shards[place])
        try:
            loaded = ShardLoader(Artifact(self.store)).load(shard, self.budget)
        except RecordError as error:
            raise UserError(f"{error}; run the prune job again with the same --output to redo that shard") from error
        if len(loaded.prompts) != self.counts[place]:
            raise UserError(
                f"{self.address}: shard {shard:08d} has {counted(len(loaded.prompts), 'prompts')} that can be posed, "
                f"it had {self.counts[place]:,} when it was opened; a job has changed it meanwhile, open it again"
            )
        images = {image_id: _in_dtype(image, self.dtype) for image_id, image in loaded.images.items()}
        return [(prompt, images.get(prompt.image_id)) for prompt in loaded.prompts]


def open_source(
    pruned: str, *, tokens: str | float = "all", min_tokens: int = 1, dtype: torch.dtype | str | None = "model"
) -> Source:
    """Check an artifact as the answer job does, and count its prompts.

    Args:
        pruned: folder or address of the artifact.
        tokens: a count, a ratio, `all`, `mean:64` or `gain:0.2`, as --tokens of the answer job.
        min_tokens: of each image, where tokens are a mean or a gain.
        dtype: of the features that are given; `model`: the one that the model had when it pruned, whatever the features
            are stored in; None: as stored, int8 as float32.

    Raises:
        UserError: no artifact of a prune job, an unfinished one, one without features or prompts, one with fewer tokens
            than are asked for, or damaged records.
    """
    artifact = Artifact(pruned)
    job = artifact.require_job("prune", "--pruned")
    check_features(artifact, job)
    if not artifact.finished:
        raise UserError(f"--pruned {artifact.address} is not finished; run its prune job again to complete it")
    text = str(tokens)
    budget = parse_answer_budget(text, "--tokens", min_tokens)
    found = survey(artifact)
    check_prompts(artifact, found)
    if isinstance(budget, Budget):
        check_stored(artifact, found, budget, text)
    else:
        check_gains(text, artifact, job)
        gains = StoredGains(artifact, found)
        if isinstance(budget, MeanBudget):
            budget = GainBudget(gains.threshold(budget), budget.min_tokens)
        gains.check_stored(text, budget)
    given = torch_dtype(job.settings["dtype"]) if dtype == "model" else dtype
    with_prompts = sorted((shard, count) for shard, count in found.posable.items() if count)
    shards, counts = np.array(with_prompts, np.int64).T
    hashes = "".join(f"{path} {sha256}\n" for path, sha256 in sorted(found.hashes.items()))
    return Source(
        store=artifact.store,
        tokens=text,
        budget=budget,
        dtype=torch_dtype(given) if isinstance(given, str) else given,
        shards=shards,
        counts=counts,
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
    )


def _in_dtype(image: KeptImage, dtype: torch.dtype | None) -> KeptImage:
    if dtype is None:
        return image
    extras = {name: rows.to(dtype) for name, rows in image.extras_KO.items()}
    return replace(image, features_KO=image.features_KO.to(dtype), extras_KO=extras)
