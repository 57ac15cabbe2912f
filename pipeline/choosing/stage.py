"""Stage try: the images of a shard answered with all tokens, and at every budget by every selector."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.answer.engine import Engine, Reply
from pipeline.answer.stage import ANSWERED, posed
from pipeline.answer.transformers_engine import TransformersEngine
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.budget import Budget, parse_budget
from pipeline.choosing.kept_sets import KeptSet, answer_sets, control_ranking, set_of
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.device import worker_device
from pipeline.cluster.outcomes import Status, ended_shard, stopped_shard
from pipeline.cluster.run_folder import StopFile
from pipeline.errors import UserError
from pipeline.families.base import KeptImage, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.loading import limit_threads
from pipeline.grading.grader import Grader
from pipeline.grading.metrics.exact import is_correct
from pipeline.loader.shard import ShardLoader
from pipeline.storage import Store
from schemas.answers import FinishReason
from schemas.columns import table_of
from schemas.records import CommitRecord
from schemas.stored import StoredPrompt
from schemas.trials import TrialRow

AGREEMENT = "agreement"
CONTROLS = (("random", 0), ("random", 1), ("random", 2), ("uniform_grid", 0))  # with their seeds
STAGE = "try"
ALL = "all"
LONG_ANSWER = 8  # tokens of an answer from which on it lets others wait
BATCH_TOKENS = 1 << 16

Run = tuple[str, int]  # a selector and its seed


@dataclass(frozen=True)
class TrySettings:
    """What the actor needs to know."""

    pruned: Path | Store
    output: Path | Store
    model: str
    dtype: str
    selector: str  # that the images were ranked by
    budgets: tuple[str, ...]
    batch_size: int
    max_new_tokens: int
    grader: Grader
    stop_file: StopFile
    device: str = "cpu"
    policy: Policy = Policy()


def runs_of(selector: str) -> list[Run]:
    """What is compared: the selector, then the controls that differ from it."""
    return [(selector, 0), *(run for run in CONTROLS if run[0] != selector)]


def score_of(grader: Grader, answer: str, prompt: StoredPrompt, with_all: str) -> tuple[str, float | None]:
    """Metric and score of an answer: by its references, or whether it agrees with the answer at all tokens.

    The score is None where there are references and the metric can't score by them.
    """
    if prompt.references:
        return grader.metric(prompt.type).name, grader.score(answer, prompt.references, prompt.type)
    return AGREEMENT, float(bool(is_correct(answer, [with_all])))


class TryShards:
    """Loads the language model once; each call answers one shard of the sample and commits the answers."""

    def __init__(self, settings: TrySettings) -> None:
        self._settings = settings
        self._output = Artifact(settings.output)
        self._runner = StageRunner(STAGE, settings.policy)
        self._refused: str | None = None
        try:
            self._device = worker_device(settings.device)
            self._loader, self._engine_at = self._runner.load(self._load)
        except UserError as error:
            self._refused = str(error)

    def _load(self) -> tuple[ShardLoader, Callable[[int], Engine]]:
        if self._device.type == "cpu":
            limit_threads(1)
        checkpoint, family = open_checkpoint(self._settings.model)
        answerer = family.answerer(checkpoint, self._device, torch_dtype(self._settings.dtype))
        asked = self._settings.batch_size
        return ShardLoader(Artifact(self._settings.pruned)), lambda batch_size: TransformersEngine(
            answerer, batch_size=batch_size, batch_tokens=BATCH_TOKENS * batch_size // asked
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A block of one row (`shard`) to one row of `ANSWERED`."""
        (shard,) = batch["shard"].to_pylist()
        if self._refused is not None:
            return ended_shard(shard, ANSWERED, Status.REFUSED, self._refused, STAGE)
        if self._settings.stop_file.is_there:
            return stopped_shard(shard, ANSWERED, STAGE)
        return self._runner.run_batches(
            shard, ANSWERED, self._settings.batch_size, lambda batch_size: self.try_shard(shard, batch_size)
        )

    def try_shard(self, shard: int, batch_size: int) -> pa.Table:
        """Answer and commit one shard, at most `batch_size` prompts a batch."""
        started = time.perf_counter()
        loaded = self._loader.load(shard, Budget("all"))
        loaded_at = time.perf_counter()
        rows = try_prompts(
            self._engine_at(batch_size),
            [prompt for prompt in loaded.prompts if prompt.image_id in loaded.images],
            loaded.images,
            selector=self._settings.selector,
            budgets=self._settings.budgets,
            grader=self._settings.grader,
            max_new_tokens=self._settings.max_new_tokens,
        )
        tried_at = time.perf_counter()
        entry = write_table(self._settings.output, "trials", shard, table_of(TrialRow, rows))
        refused = sum(row.finish_reason is FinishReason.REFUSED for row in rows if row.selector is None)
        prompts = sum(row.selector is None for row in rows)
        record = CommitRecord(
            shard,
            {"trials": entry},
            {"prompts": prompts, "refused": refused, "trials": len(rows)},
            {"load": loaded_at - started, STAGE: tried_at - loaded_at, "write": time.perf_counter() - tried_at},
            committed=time.time(),
            sources=loaded.sources,
            device=self._device.type,
            batch_size=batch_size,
        )
        self._output.commit(record)
        outcome = {"shard": shard, "status": Status.COMMITTED, "prompts": prompts, "refused": refused}
        outcome |= {"device": self._device.type, "batch_size": batch_size}
        return pa.Table.from_pylist([outcome], ANSWERED)


def try_prompts(
    engine: Engine,
    prompts: Sequence[StoredPrompt],
    images: dict[str, KeptImage],
    *,
    selector: str,
    budgets: Sequence[str],
    grader: Grader,
    max_new_tokens: int,
) -> list[TrialRow]:
    """Pose prompts about images with all of their tokens, then with those that each selector keeps at each budget.

    Args:
        engine: the language model.
        prompts: about these images.
        images: with all tokens, whose ranking is that of `selector`.
        selector: to be compared with the controls.
        budgets: to try.
        grader: of answers with references.
        max_new_tokens: of an answer.
    """
    texts = [posed(prompt) for prompt in prompts]
    about: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        about.setdefault(prompt.image_id, []).append(number)
    whole = [KeptSet(image_id, images[image_id]) for image_id in about]
    with_all: dict[int, Reply] = {}
    for found in answer_sets(engine, whole, texts, about, long=(), max_new_tokens=max_new_tokens):
        with_all.update(found)
    long = {number for number, reply in with_all.items() if len(reply.token_ids) >= LONG_ANSWER}
    chosen = list(_chosen(images, list(about), runs_of(selector), budgets))
    distinct = {one.kept.image_id: one for _, _, one in chosen}
    answered = answer_sets(engine, list(distinct.values()), texts, about, long=long, max_new_tokens=max_new_tokens)
    replies = dict(zip(distinct, answered, strict=True))

    def rows(run: Run | None, budget: str, kept: KeptImage, of_set: dict[int, Reply]) -> Iterator[TrialRow]:
        for number, reply in of_set.items():
            prompt, full = prompts[number], with_all[number].text
            metric, score = score_of(grader, reply.text or "", prompt, full or "")
            yield TrialRow(
                prompt_id=prompt.prompt_id,
                image_id=prompt.image_id,
                type=prompt.type,
                selector=run[0] if run else None,
                seed=run[1] if run else 0,
                budget=budget,
                tokens=len(kept.indices_K),
                num_tokens=kept.selection.num_tokens,
                answer=reply.text,
                finish_reason=reply.finish_reason,
                metric=metric,
                score=None if reply.text is None or full is None else score,
                shard=prompt.shard,
            )

    found_rows = [
        row
        for one in whole
        for row in rows(None, ALL, one.kept, {number: with_all[number] for number in about[one.image_id]})
    ]
    for run, budget, one in chosen:
        found_rows += rows(run, budget, one.kept, replies[one.kept.image_id])
    return found_rows


def _chosen(
    images: dict[str, KeptImage], image_ids: Sequence[str], runs: Sequence[Run], budgets: Sequence[str]
) -> Iterator[tuple[Run, str, KeptSet]]:
    """The set that each selector keeps of each image at each budget."""
    for number, run in enumerate(runs):
        for image_id in image_ids:
            image = images[image_id]
            ranking = image.selection.ranking if number == 0 else control_ranking(image, *run)
            for budget in budgets:
                k = parse_budget(budget, "--tokens").of(image.selection.num_tokens)
                yield run, budget, set_of(image, ranking[:k])
