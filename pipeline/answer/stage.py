"""Stage generate: prompts about pruned images to answers, with the language model alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import pyarrow as pa

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Engine, Question, Reply
from pipeline.answer.engines import ENGINES, load_engine
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.asked import TABLE, read_asked
from pipeline.artifact.tables import write_table
from pipeline.cluster.attempts import StageRunner
from pipeline.cluster.device import worker_device
from pipeline.cluster.outcomes import ENDING, Status, ended_shard, stopped_shard
from pipeline.errors import UserError
from pipeline.families.base import KeptImage, Posed, Turn
from pipeline.families.loading import limit_threads
from pipeline.grading.grader import Grader
from pipeline.grading.metrics.exact import is_correct
from pipeline.loader.shard import LoadedShard, ShardLoader
from schemas.answers import AnswerRow, FinishReason
from schemas.columns import rows_of, schema_of, table_of
from schemas.records import CommitRecord, FileEntry
from schemas.statuses import OK
from schemas.stored import StoredPrompt

SERVER = "server"
# What the driver learns of an answered shard.
ANSWERED = pa.schema(
    [
        ("shard", pa.int32()),
        ("prompts", pa.int64()),
        ("refused", pa.int64()),
        ("device", pa.string()),  # that the model ran on: "cuda", "cpu", or "server" where a server answered
        ("batch_size", pa.int32()),  # prompts a batch: as asked, or less where memory ran out
        *ENDING,
    ]
)


class AnswerShards:
    """Loads the language model once; each call answers one shard's prompts and commits them."""

    def __init__(self, settings: GenerateSettings) -> None:
        self._settings = settings
        self._output = Artifact(settings.output)
        self._runner = StageRunner("generate", settings.policy)
        self._refused: str | None = None  # why the model can't be used: in shards' outcomes, not in a dying worker
        try:
            self._device = worker_device(settings.device)
            self._computed_on = SERVER if ENGINES[settings.engine].is_remote else self._device.type
            self._loader, self._engine_at = self._runner.load(self._load)
        except UserError as error:
            self._refused = str(error)

    def _load(self) -> tuple[ShardLoader, Callable[[int], Engine]]:
        """What reads shards, and the engine at a batch size."""
        if self._device.type == "cpu":
            limit_threads(1)
        engine_at = load_engine(self._settings, self._device)
        return ShardLoader(Artifact(self._settings.pruned)), engine_at

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A block of one row (`shard`) to one row of `ANSWERED`."""
        (shard,) = batch["shard"].to_pylist()
        if self._refused is not None:
            return ended_shard(shard, ANSWERED, Status.REFUSED, self._refused, "generate")
        if self._settings.stop_file.is_there:
            return stopped_shard(shard, ANSWERED, "generate")
        return self._runner.run_batches(
            shard, ANSWERED, self._settings.batch_size, lambda batch_size: self.answer_shard(shard, batch_size)
        )

    def answer_shard(self, shard: int, batch_size: int) -> pa.Table:
        """Answer and commit one shard, at most `batch_size` prompts a batch."""
        started = time.perf_counter()
        files = {} if self._settings.asked is None else {TABLE: self._settings.asked[shard]}
        loaded, unposable = self._load_shard(shard, files)
        loaded_at = time.perf_counter()
        engine = self._engine_at(batch_size)
        rows = answer_prompts(
            engine,
            loaded.prompts,
            loaded.images,
            decoding=self._settings.decoding,
            grader=self._settings.grader,
            unposable=unposable,
        )
        generated_at = time.perf_counter()
        entry = write_table(self._settings.output, "answers", shard, table_of(AnswerRow, rows))
        graded = [row.correct for row in rows if row.correct is not None]
        refused = sum(row.finish_reason is FinishReason.REFUSED for row in rows)
        counts = {"prompts": len(rows), "refused": refused, "graded": len(graded), "correct": sum(graded)}
        seconds = {
            "load": loaded_at - started,
            "generate": generated_at - loaded_at,
            "write": time.perf_counter() - generated_at,
        }
        record = CommitRecord(
            shard,
            {"answers": entry, **files},
            counts,
            seconds,
            committed=time.time(),
            sources=loaded.sources,
            device=self._computed_on,
            batch_size=batch_size,
        )
        self._output.commit(record)
        outcome = {
            "shard": shard,
            "status": Status.COMMITTED,
            "prompts": len(rows),
            "refused": refused,
            "device": self._computed_on,
            "batch_size": batch_size,
        }
        return pa.Table.from_pylist([outcome], ANSWERED)

    def _load_shard(self, shard: int, files: Mapping[str, FileEntry]) -> tuple[LoadedShard, dict[int, str]]:
        """What a shard asks, and of those prompts that can't be posed why, by their places."""
        if not files:
            return self._loader.load(shard, self._settings.budget), {}
        used: dict[str, str] = {}
        table = read_asked(self._output, shard, files[TABLE], used)
        prompts = rows_of(StoredPrompt, table.select(schema_of(StoredPrompt).names))
        told = zip(table["status"].to_pylist(), table["message"].to_pylist(), strict=True)
        unposable = {place: message or status for place, (status, message) in enumerate(told) if status != OK}
        posable = [prompt for place, prompt in enumerate(prompts) if place not in unposable]
        loaded = self._loader.load_images(posable, self._settings.budget)
        return LoadedShard(prompts, loaded.images, {**loaded.sources, **used}), unposable


def answer_prompts(
    engine: Engine,
    prompts: Sequence[StoredPrompt],
    images: Mapping[str, KeptImage],
    *,
    decoding: Decoding,
    grader: Grader,
    unposable: Mapping[int, str] = MappingProxyType({}),
) -> list[AnswerRow]:
    """Pose prompts about kept images and grade what comes back; a row for each prompt, in the order of `prompts`.

    A prompt whose image is not among `images` is refused without being posed, and so is one whose place is in
    `unposable`, which says why.
    """
    rows: dict[int, AnswerRow] = {
        number: _row(prompts[number], 0, Reply.refusal(why), grader) for number, why in unposable.items()
    }
    there = [number for number, one in enumerate(prompts) if one.image_id in images and number not in rows]
    questions = [_question(prompts[number], images) for number in there]
    replies = engine.answer(questions, decoding)
    for number, question, reply in zip(there, questions, replies, strict=True):
        rows[number] = _row(prompts[number], len(question.image.indices_K), reply, grader)
    no_image = Reply.refusal("its image has no selection in the pruned corpus")
    return [rows.get(number) or _row(prompt, 0, no_image, grader) for number, prompt in enumerate(prompts)]


def _question(prompt: StoredPrompt, images: Mapping[str, KeptImage]) -> Question:
    return Question(posed(prompt), images[prompt.image_id], prompt.prompt_id)


def posed(prompt: StoredPrompt) -> Posed:
    """A stored prompt as it is posed."""
    if prompt.messages is None:
        return prompt.prompt
    return tuple(Turn(message.role, message.text) for message in prompt.messages)


def _row(prompt: StoredPrompt, tokens: int, reply: Reply, grader: Grader) -> AnswerRow:
    return AnswerRow(
        prompt_id=prompt.prompt_id,
        image_id=prompt.image_id,
        answer=reply.text,
        answer_tokens=list(reply.token_ids),
        finish_reason=reply.finish_reason,
        tokens=tokens,
        seconds=reply.seconds,
        type=prompt.type,
        references=prompt.references,
        correct=None if reply.text is None else is_correct(reply.text, prompt.references),
        metric=grader.metric(prompt.type).name,
        score=None if reply.text is None else grader.score(reply.text, prompt.references, prompt.type),
        shard=prompt.shard,
        message=reply.message,
    )
