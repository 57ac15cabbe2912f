"""Stage generate: prompts about pruned images to answers, with the language model alone."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.answer.generation_settings import FORCED, end_tokens, runs_alone
from pipeline.answer.grade import is_correct
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.budget import Budget
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.device import worker_device
from pipeline.cluster.outcomes import ENDING, Status, ended_shard, stopped_shard
from pipeline.errors import UserError
from pipeline.families.base import Answerer, KeptImage, UnusablePromptError, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.loading import fixed_rotation_limit, forget_long_texts, limit_threads
from pipeline.loader.images import load_images, load_prompts
from schemas.records import CommitRecord
from schemas.tables import ANSWERS

# What the driver learns of an answered shard.
ANSWERED = pa.schema(
    [
        ("shard", pa.int32()),
        ("prompts", pa.int64()),
        ("refused", pa.int64()),
        ("device", pa.string()),  # that the model ran on: "cuda" or "cpu"
        *ENDING,
    ]
)


@dataclass(frozen=True)
class GenerateSettings:
    """What the answering actor needs to know."""

    pruned: Path
    output: Path
    model: str
    dtype: str
    budget: Budget
    batch_size: int  # prompts a batch
    max_new_tokens: int
    stop_file: Path  # while it exists no further shard is begun
    positions: str | None = None  # of the family's; None: its default
    device: str = "cpu"  # or "cuda", or "auto": CUDA where the worker sees it
    policy: Policy = Policy()


@dataclass(frozen=True)
class Question:
    """A prompt ready for the model."""

    prompt: dict[str, Any]  # its row of the prompts table
    image: KeptImage
    token_ids: list[int]  # rendered text, the image's tokens in their place

    @property
    def last_position(self) -> int:
        """No token of the prompt has a position beyond, however kept tokens are numbered."""
        return len(self.token_ids) + int(self.image.selection["num_tokens"] + self.image.selection["num_structure"])

    def end_of_image(self, image_token_id: int) -> int:
        """Place behind the last image token."""
        return len(self.token_ids) - self.token_ids[::-1].index(image_token_id)

    def beginning(self, image_token_id: int) -> tuple[str, ...]:
        """What two questions must share to share the pass over their image; unique where nothing follows the image."""
        end = self.end_of_image(image_token_id)
        own = (str(self.prompt["prompt_id"]),) if end == len(self.token_ids) else ()
        return (self.image.image_id, *map(str, self.token_ids[:end]), *own)


class AnswerShards:
    """Loads the language model once; each call answers one shard's prompts and commits them."""

    def __init__(self, settings: GenerateSettings) -> None:
        self._settings = settings
        self._pruned = Artifact(settings.pruned)
        self._output = Artifact(settings.output)
        self._runner = StageRunner("generate", settings.policy)
        self._refused: str | None = None  # why the model can't be used: in shards' outcomes, not in a dying worker
        try:
            self._device = worker_device(settings.device)
            self._answerer = self._runner.load(self._load)
        except UserError as error:
            self._refused = str(error)

    def _load(self) -> Answerer:
        if self._device.type == "cpu":
            limit_threads(1)
        checkpoint, family = open_checkpoint(self._settings.model)
        dtype = torch_dtype(self._settings.dtype)
        return family.answerer(checkpoint, self._device, dtype, self._settings.positions)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A block of one row (`shard`) to one row of `ANSWERED`."""
        (shard,) = batch["shard"].to_pylist()
        if self._refused is not None:
            return ended_shard(shard, ANSWERED, Status.REFUSED, self._refused, "generate")
        if self._settings.stop_file.exists():
            return stopped_shard(shard, ANSWERED, "generate")
        return self._runner.run(shard, ANSWERED, lambda: self.answer_shard(shard))

    def answer_shard(self, shard: int) -> pa.Table:
        """Answer and commit one shard."""
        started = time.perf_counter()
        used: dict[str, str] = {}
        prompts = load_prompts(self._pruned, shard, used)
        owners = {p["image_id"]: p["image_shard"] for p in prompts}
        images = load_images(self._pruned, owners, self._settings.budget, used)
        loaded = time.perf_counter()
        rows = answer_prompts(
            self._answerer,
            prompts,
            images,
            batch_size=self._settings.batch_size,
            max_new_tokens=self._settings.max_new_tokens,
        )
        generated = time.perf_counter()
        entry = write_table(self._settings.output, "answers", shard, pa.Table.from_pylist(rows, ANSWERS))
        graded = [row["correct"] for row in rows if row["correct"] is not None]
        refused = sum(row["finish_reason"] == "refused" for row in rows)
        counts = {"prompts": len(rows), "refused": refused, "graded": len(graded), "correct": sum(graded)}
        seconds = {
            "load": loaded - started,
            "generate": generated - loaded,
            "write": time.perf_counter() - generated,
        }
        device = self._device.type
        self._output.commit(CommitRecord(shard, {"answers": entry}, counts, seconds, sources=used, device=device))
        outcome = {
            "shard": shard,
            "status": Status.COMMITTED,
            "prompts": len(rows),
            "refused": refused,
            "device": device,
        }
        return pa.Table.from_pylist([outcome], ANSWERED)


def answer_prompts(
    answerer: Answerer,
    prompts: Sequence[dict[str, Any]],
    images: dict[str, KeptImage],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Greedy answers to prompts about kept images; rows of `ANSWERS` in the order of `prompts`.

    Prompts of one image run together, images of similar length beside each other. A prompt that the family refuses, or
    whose image is not among `images`, gets finish reason `refused`, a null answer and the reason as `message`.
    """
    rows: list[dict[str, Any] | None] = [None] * len(prompts)
    questions: list[tuple[int, Question]] = []
    for number, prompt in enumerate(prompts):
        image = images.get(prompt["image_id"])
        if image is None:
            rows[number] = _refused(prompt, 0, "its image has no selection in the pruned corpus")
            continue
        try:
            questions.append((number, _question(answerer, prompt, image)))
        except UnusablePromptError as error:
            rows[number] = _refused(prompt, len(image.indices_K), str(error))
    place_of = {image_id: place for place, image_id in enumerate(images)}

    def order(item: tuple[int, Question]) -> tuple[int, ...]:
        number, question = item
        image = question.image
        return len(image.indices_K), place_of[image.image_id], len(question.token_ids), number

    questions.sort(key=order)
    for chunk in _chunks(answerer, questions, batch_size, max_new_tokens):
        started = time.perf_counter()
        outputs = list(_generate(answerer, [question for _, question in chunk], max_new_tokens))
        each = (time.perf_counter() - started) / len(chunk)
        for (number, question), (tokens, reason) in zip(chunk, outputs, strict=True):
            text = answerer.tokenizer.decode(tokens, skip_special_tokens=True)
            assert isinstance(text, str), "one sequence decodes to one text"
            rows[number] = {
                **_asked(question.prompt, len(question.image.indices_K)),
                "answer": text.strip(),
                "answer_tokens": tokens,
                "finish_reason": reason,
                "seconds": each,
                "correct": is_correct(text.strip(), question.prompt["references"]),
            }
    return [row for row in rows if row is not None]


def _chunks(
    answerer: Answerer, questions: Sequence[tuple[int, Question]], batch_size: int, max_new_tokens: int
) -> Iterator[Sequence[tuple[int, Question]]]:
    """Questions that run together; one at a time where another row, or padding, could change an answer."""
    limit = 0 if runs_alone(answerer.model.generation_config) else fixed_rotation_limit(answerer.model)
    apart = [item for item in questions if limit is not None and item[1].last_position + max_new_tokens >= limit]
    numbers_apart = {number for number, _ in apart}
    together = [item for item in questions if item[0] not in numbers_apart]
    for begin in range(0, len(together), batch_size):
        yield together[begin : begin + batch_size]
    for item in apart:
        forget_long_texts(answerer.model)
        yield [item]


def _question(answerer: Answerer, prompt: dict[str, Any], image: KeptImage) -> Question:
    return Question(prompt, image, answerer.token_ids(prompt["prompt"], image))


@torch.inference_mode()
def _generate(
    answerer: Answerer, questions: Sequence[Question], max_new_tokens: int
) -> Iterator[tuple[list[int], str]]:
    """Generated token ids (end of sequence excluded) and finish reason of each question.

    Questions that begin alike, up to and including their image, share one pass over that beginning: its cache is
    computed once and copied to each of them.
    """
    ends = end_tokens(answerer.model.generation_config)
    pad = _padding(answerer, ends)
    device = answerer.model.device
    owners: dict[tuple[str, ...], int] = {}  # (image, beginning) -> number among the distinct beginnings
    beginnings = [owners.setdefault(q.beginning(answerer.image_token_id), len(owners)) for q in questions]
    shared: dict[str, Any] = {}
    if len(owners) == len(questions) or not answerer.shares_beginnings:
        ids, mask = _left_padded([q.token_ids for q in questions], pad, device)
    else:
        firsts = [questions[beginnings.index(number)] for number in range(len(owners))]
        cuts = [q.end_of_image(answerer.image_token_id) for q in firsts]
        ids, mask = _left_padded([q.token_ids[:cut] for q, cut in zip(firsts, cuts, strict=True)], pad, device)
        inputs = answerer.image_inputs([q.image for q in firsts], ids, mask)
        inputs.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp_min(0))
        cache = answerer.model(
            input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **inputs
        ).past_key_values
        rows = torch.tensor(beginnings, device=device)
        cache.batch_select_indices(rows)
        shared = {"past_key_values": cache}
        tails = [q.token_ids[cuts[number] :] for q, number in zip(questions, beginnings, strict=True)]
        tail_ids, tail_mask = _left_padded(tails, pad, device)
        ids, mask = torch.cat([ids[rows], tail_ids], 1), torch.cat([mask[rows], tail_mask], 1)
    inputs = answerer.image_inputs([q.image for q in questions], ids, mask)
    if shared:
        del inputs["mm_encoder_outputs"]
    output = answerer.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        **FORCED,
        **inputs,
        **shared,
    )
    for tokens in output[:, ids.shape[1] :].tolist():
        stop = next((n for n, token in enumerate(tokens) if token in ends), None)
        yield (tokens, "length") if stop is None else (tokens[:stop], "stop")


def _padding(answerer: Answerer, ends: Sequence[int]) -> int:
    """A token id for places that are masked or behind an answer's end; the checkpoint's own may be no token at all."""
    size = answerer.model.get_input_embeddings().num_embeddings
    candidates = (answerer.model.generation_config.pad_token_id, *ends, 0, 1)
    return next(t for t in candidates if t is not None and 0 <= t < size and t != answerer.image_token_id)


def _left_padded(sequences: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) and attention mask of sequences of different length."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def _asked(prompt: dict[str, Any], tokens: int) -> dict[str, Any]:
    shared = {name: prompt[name] for name in ("prompt_id", "image_id", "type", "references", "shard")}
    return {**shared, "tokens": tokens, "message": None}


def _refused(prompt: dict[str, Any], tokens: int, message: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "answer": None,
        "answer_tokens": [],
        "finish_reason": "refused",
        "seconds": 0.0,
        "correct": None,
    }
    return {**_asked(prompt, tokens), **answer, "message": message}
