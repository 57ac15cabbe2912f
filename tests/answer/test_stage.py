"""A shard from its prompts to its commit, with an engine that needs no model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.answer.checks import survey
from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Question, Reply
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.answer.stage import AnswerShards, answer_prompts
from pipeline.artifact.artifact import Artifact
from pipeline.budget import Budget
from pipeline.cluster.run_folder import StopFile
from pipeline.grading.grader import Grader
from pipeline.loader.shard import ShardLoader
from pipeline.storage import LocalStore
from schemas.answers import FinishReason
from schemas.stored import StoredPrompt
from schemas.tables import ANSWERS
from tests.answer.fakes import kept


class Echo:
    """Replies with the prompt; refuses where it is told to, and has memory for a few at once."""

    def __init__(self, batch_size: int = 1, memory: int = 1000) -> None:
        self.asked: list[Question] = []
        self.batch_size, self.memory = batch_size, memory

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Reply]:
        if self.batch_size > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.asked += questions
        return [
            Reply.refusal("told to")
            if "no" in q.prompt
            else Reply(q.prompt, [decoding.max_new_tokens], FinishReason.STOP, 0.5)
            for q in questions
        ]


def prompt(number: int, text: str, image: str = "a", references: list[str] | None = None) -> StoredPrompt:
    return StoredPrompt(
        prompt_id=f"p{number}", image_id=image, prompt=text, references=references, type="t", shard=3, image_shard=1
    )


def test_rows_come_in_the_order_of_the_prompts_and_are_graded():
    engine = Echo()
    prompts = [
        prompt(0, "red", references=["Red."]),
        prompt(1, "blue", image="gone", references=["blue"]),
        prompt(2, "no", references=["no"]),
        prompt(3, "green", image="b", references=["red"]),
        prompt(4, "free"),
    ]
    images = {"a": kept("a", 2), "b": kept("b", 3)}
    rows = answer_prompts(engine, prompts, images, decoding=Decoding(5), grader=Grader(by_type={"t": "object_f1"}))
    assert [(r.prompt_id, r.answer, r.finish_reason.value, r.tokens, r.correct, r.message) for r in rows] == [
        ("p0", "red", "stop", 2, True, None),
        ("p1", None, "refused", 0, None, "its image has no selection in the pruned corpus"),
        ("p2", None, "refused", 2, None, "told to"),
        ("p3", "green", "stop", 3, False, None),
        ("p4", "free", "stop", 2, None, None),
    ]
    assert [(r.metric, r.score) for r in rows] == [("object_f1", score) for score in (1.0, None, None, 0.0, None)]
    assert [q.prompt for q in engine.asked] == ["red", "no", "green", "free"]
    assert {(r.shard, r.type) for r in rows} == {(3, "t")}
    assert [(r.answer_tokens, r.seconds) for r in rows[:2]] == [([5], 0.5), ([], 0.0)]


@pytest.fixture
def memory() -> int:
    """Prompts that the replaced model has memory for at once."""
    return 1000


@pytest.fixture
def stage(small_pruned, tmp_path, monkeypatch, memory):
    """The stage over a small artifact, its model replaced."""

    def load(self: AnswerShards) -> tuple[ShardLoader, Callable[[int], Echo]]:
        return ShardLoader(Artifact(self._settings.pruned)), lambda batch_size: Echo(batch_size, memory)

    monkeypatch.setattr(AnswerShards, "_load", load)
    pruned = small_pruned(tmp_path / "pruned")
    return AnswerShards(
        GenerateSettings(
            pruned=pruned, output=tmp_path / "out", model="m", dtype="float32", budget=Budget("count", 1),
            batch_size=4, batch_tokens=100, decoding=Decoding(6), stop_file=StopFile(LocalStore(tmp_path), "stop"),
        )
    )  # fmt: skip


def test_a_shard_is_committed_with_what_it_was_made_from(stage, tmp_path):
    (outcome,) = stage.answer_shard(1, 4).to_pylist()
    assert (outcome["shard"], outcome["prompts"], outcome["refused"], outcome["failure"]) == (1, 2, 0, None)
    artifact = Artifact(tmp_path / "out")
    record = artifact.read_commit(1)
    assert record is not None
    assert record.counts == {"prompts": 2, "refused": 0, "graded": 2, "correct": 0}
    assert set(record.seconds) == {"load", "generate", "write"}
    hashes = survey(Artifact(tmp_path / "pruned")).hashes
    assert sorted(record.sources) == [
        *("features/shard-00000000.tar", "features/shard-00000001.tar"),
        *("payloads/part-00000000.parquet", "payloads/part-00000001.parquet", "prompts/part-00000001.parquet"),
        *("selections/part-00000000.parquet", "selections/part-00000001.parquet"),
    ]
    assert record.sources.items() <= hashes.items()
    table = pq.read_table(Path(artifact.address) / record.files["answers"].path)
    assert table.schema.equals(ANSWERS)
    assert table.select(["prompt_id", "answer", "tokens", "correct"]).to_pylist() == [
        {"prompt_id": f"p1-{n}", "answer": "what?", "tokens": 1, "correct": False} for n in (0, 1)
    ]


def test_no_shard_begins_once_the_run_is_to_stop(stage, tmp_path):
    (tmp_path / "stop").touch()
    (outcome,) = stage(pa.table({"shard": [0]})).to_pylist()
    assert outcome["status"] == "stopped"
    assert Artifact(tmp_path / "out").committed_shards() == []


@pytest.mark.parametrize("memory", [2])
def test_a_shard_whose_batch_does_not_fit_is_answered_at_half_of_it(stage, tmp_path):
    (outcome,) = stage(pa.table({"shard": [1]})).to_pylist()
    assert (outcome["status"], outcome["prompts"], outcome["batch_size"]) == ("committed", 2, 2)
    record = Artifact(tmp_path / "out").read_commit(1)
    assert record is not None
    assert record.batch_size == 2


@pytest.mark.parametrize("memory", [0])
def test_a_shard_that_does_not_fit_prompt_by_prompt_is_given_up_and_says_what_to_do(stage, tmp_path):
    (outcome,) = stage(pa.table({"shard": [1]})).to_pylist()
    assert outcome["status"] == "given_up"
    assert outcome["failure"].startswith("stage generate: memory runs out with one item in a batch (OutOfMemoryError")
    assert Artifact(tmp_path / "out").committed_shards() == []
