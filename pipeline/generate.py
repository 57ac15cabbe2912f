"""Stage generate: prompts about pruned images to answers, with the language model alone."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipeline.artifact import Artifact
from pipeline.attempts import BAD_INPUT, STOPPED, Policy, StageRunner, failed_shard
from pipeline.budget import Budget
from pipeline.checkpoint import open_checkpoint
from pipeline.errors import UserError
from pipeline.families.base import Answerer, KeptImage, UnusablePromptError, torch_dtype
from pipeline.families.loading import limit_threads
from pipeline.grade import is_correct
from pipeline.load import load_images, load_prompts
from pipeline.write import write_table
from schemas.records import CommitRecord
from schemas.tables import ANSWERS

# What the driver learns of an answered shard.
ANSWERED = pa.schema(
    [("shard", pa.int32()), ("prompts", pa.int64()), ("refused", pa.int64()), ("failure", pa.string())]
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
    positions: str | None = None  # of the family's; None: its default
    use_gpu: bool = False
    policy: Policy = Policy()


@dataclass(frozen=True)
class Question:
    """A prompt ready for the model."""

    prompt: dict[str, Any]  # its row of the prompts table
    image: KeptImage
    token_ids: list[int]  # rendered text, the image's tokens in their place


class AnswerShards:
    """Loads the language model once; each call answers one shard's prompts and commits them."""

    def __init__(self, settings: GenerateSettings) -> None:
        self._settings = settings
        self._pruned = Artifact(settings.pruned)
        self._output = Artifact(settings.output)
        self._runner = StageRunner("generate", settings.policy, self._prepare_thread)
        self._prepare_thread()
        self._refused = ""  # why the model can't be used: said in every shard's outcome, not by a dying worker
        try:
            checkpoint, family = open_checkpoint(settings.model)
            device = torch.device("cuda" if settings.use_gpu else "cpu")
            self._answerer = family.answerer(checkpoint, device, torch_dtype(settings.dtype), settings.positions)
        except UserError as error:
            self._refused = f"{BAD_INPUT}{error}"

    def _prepare_thread(self) -> None:
        if not self._settings.use_gpu:
            limit_threads(1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A block of one row (`shard`) to one row of `ANSWERED`."""
        (shard,) = batch["shard"].to_pylist()
        if self._refused:
            return failed_shard(shard, ANSWERED, self._refused)
        if self._output.stop_file.exists():
            return failed_shard(shard, ANSWERED, STOPPED)
        return self._runner.run(shard, ANSWERED, lambda: self.answer_shard(shard))

    def answer_shard(self, shard: int) -> pa.Table:
        """Answer and commit one shard."""
        started = time.perf_counter()
        prompts = load_prompts(self._pruned, shard)
        images = load_images(self._pruned, {p["image_id"]: p["image_shard"] for p in prompts}, self._settings.budget)
        loaded = time.perf_counter()
        rows = answer_prompts(
            self._answerer,
            prompts,
            images,
            batch_size=self._settings.batch_size,
            max_new_tokens=self._settings.max_new_tokens,
        )
        generated = time.perf_counter()
        entry = write_table(self._settings.output, "answers", shard, rows, ANSWERS)
        graded = [row["correct"] for row in rows if row["correct"] is not None]
        refused = sum(row["finish_reason"] == "refused" for row in rows)
        counts = {"prompts": len(rows), "refused": refused, "graded": len(graded), "correct": sum(graded)}
        seconds = {
            "load": loaded - started,
            "generate": generated - loaded,
            "write": time.perf_counter() - generated,
        }
        self._output.commit(CommitRecord(shard, {"answers": entry}, counts, seconds))
        outcome = {"shard": shard, "prompts": len(rows), "refused": refused}
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

    Prompts are batched with others of similar length. A prompt the family refuses gets finish reason `refused` and
    the reason as its answer's absence (null).
    """
    rows: list[dict[str, Any] | None] = [None] * len(prompts)
    questions: list[tuple[int, Question]] = []
    for number, prompt in enumerate(prompts):
        image = images[prompt["image_id"]]
        try:
            questions.append((number, _question(answerer, prompt, image)))
        except UnusablePromptError:
            rows[number] = _row(prompt, image, None, [], "refused", 0.0)
    questions.sort(key=lambda item: (len(item[1].token_ids), item[0]))
    for begin in range(0, len(questions), batch_size):
        chunk = questions[begin : begin + batch_size]
        started = time.perf_counter()
        outputs = list(_generate(answerer, [question for _, question in chunk], max_new_tokens))
        each = (time.perf_counter() - started) / len(chunk)
        for (number, question), (tokens, reason) in zip(chunk, outputs, strict=True):
            text = answerer.tokenizer.decode(tokens, skip_special_tokens=True)
            assert isinstance(text, str), "one sequence decodes to one text"
            rows[number] = _row(question.prompt, question.image, text.strip(), tokens, reason, each)
    return [row for row in rows if row is not None]


def _question(answerer: Answerer, prompt: dict[str, Any], image: KeptImage) -> Question:
    return Question(prompt, image, answerer.token_ids(prompt["prompt"], image))


@torch.inference_mode()
def _generate(
    answerer: Answerer, questions: Sequence[Question], max_new_tokens: int
) -> Iterator[tuple[list[int], str]]:
    """Generated token ids (end of sequence excluded) and finish reason of each question."""
    width = max(len(q.token_ids) for q in questions)
    config = answerer.model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    pad = config.pad_token_id if config.pad_token_id is not None else ends[0]
    ids = torch.full((len(questions), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, question in enumerate(questions):
        begin = width - len(question.token_ids)
        ids[row, begin:] = torch.tensor(question.token_ids)
        mask[row, begin:] = 1
    device = answerer.model.device
    ids, mask = ids.to(device), mask.to(device)
    output = answerer.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        **answerer.image_inputs([q.image for q in questions], ids, mask),
    )
    for tokens in output[:, width:].tolist():
        stop = next((n for n, token in enumerate(tokens) if token in ends), None)
        yield (tokens, "length") if stop is None else (tokens[:stop], "stop")


def _row(
    prompt: dict[str, Any], image: KeptImage, answer: str | None, tokens: list[int], reason: str, seconds: float
) -> dict[str, Any]:
    return {
        **{name: prompt[name] for name in ("prompt_id", "image_id", "type", "references", "shard")},
        "answer": answer,
        "answer_tokens": tokens,
        "finish_reason": reason,
        "tokens": len(image.indices_K),
        "seconds": seconds,
        "correct": None if answer is None else is_correct(answer, prompt["references"]),
    }
