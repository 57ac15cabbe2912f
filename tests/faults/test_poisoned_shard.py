"""Shards that kill their worker every time, in every stage of both jobs: given up and named, the others are done.

Part of the full fault suite (`make faults`). The short form, on stages of its own, is in `test_tries.py`.
"""

import os
import signal
from pathlib import Path
from unittest import mock

import pytest
from fault_tools import (
    NUM_SHARDS,
    RUN_SETTINGS,
    answers_of,
    commits,
    data_of,
    differing,
    lost_and_doubled,
    rows_lost_and_doubled,
    rows_of,
)

from pipeline.answer import job as answer
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.prune import read, write
from pipeline.prune import stages as shards
from pipeline.prune.job import PruneSettings, prune_corpus

pytestmark = pytest.mark.slow

IN_READ, IN_ENCODE, IN_WRITE = 5, 11, 24


def assert_given_up(result, said: list[str], output: Path, expected: dict[int, str]) -> None:
    """Exactly the expected shards, with their stage and what befell it; the others are committed, nothing is left."""
    assert result.failures.keys() == expected.keys()
    for shard, stage in expected.items():
        assert result.failures[shard].startswith(f"stage {stage}: its worker (process ")
        assert result.failures[shard].endswith("died: killed, or out of memory\n(tried 2 times)")
        assert any(line.startswith(f"shard {shard:08d} is given up: stage {stage}: its worker") for line in said)
    assert result.shards_done == commits(output) == NUM_SHARDS - len(expected)
    assert not (output / "_SUCCESS").exists()
    assert not (output / "_runs").exists()


@pytest.mark.usefixtures("ray_session")
def test_prune_gives_them_up_and_an_honest_run_completes_it(
    without_ray, made_corpus, tiny_llava, calm, facts, tmp_path
):
    in_read, in_encode, in_write = IN_READ, IN_ENCODE, IN_WRITE

    # Nested, so that they are pickled by value: workers can't import this file.
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    class Encode(shards.EncodeShards):
        def encode_shard(self, batch, batch_size):
            if batch["shard"][0].as_py() == in_encode:
                os.kill(os.getpid(), signal.SIGKILL)
            return shards.EncodeShards.encode_shard(self, batch, batch_size)

    def read_stage(batch, settings):
        if batch["shard"][0].as_py() != in_read:
            return read.read_stage(batch, settings)
        with mock.patch("pipeline.prune.read.read_shard", side_effect=die):
            return read.read_stage(batch, settings)

    def write_stage(batch, settings):
        if batch["shard"][0].as_py() != in_write:
            return write.write_stage(batch, settings)
        with mock.patch("pipeline.prune.write.write_shard", side_effect=die):
            return write.write_stage(batch, settings)

    output, said = tmp_path / "out", []
    settings = PruneSettings(
        corpus=(made_corpus,), model=tiny_llava, output=str(output), **RUN_SETTINGS["prune"], retries=1
    )
    poisoned = {"EncodeShards": Encode, "read_stage": read_stage, "write_stage": write_stage}
    with mock.patch.multiple(shards, **poisoned):
        result = prune_corpus(settings, said.append)
    assert_given_up(result, said, output, {IN_READ: "read", IN_ENCODE: "encode", IN_WRITE: "write"})

    with without_ray():
        again = prune_corpus(settings, said.append)
    assert (again.failures, again.shards_done, again.shards_skipped) == ({}, 3, NUM_SHARDS - 3)
    assert differing(data_of(output), data_of(calm)) == []
    assert rows_lost_and_doubled(output, facts) == (0, 0)


@pytest.mark.usefixtures("ray_session")
def test_answer_gives_it_up_and_an_honest_run_completes_it(without_ray, tiny_llava, calm, tmp_path):
    in_generate = IN_ENCODE

    class Answer(answer.AnswerShards):
        def answer_shard(self, shard, batch_size):
            if shard == in_generate:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer.AnswerShards.answer_shard(self, shard, batch_size)

    output, said = tmp_path / "out", []
    settings = AnswerSettings(
        pruned=str(calm), model=tiny_llava, output=str(output), **RUN_SETTINGS["answer"], retries=1
    )
    with mock.patch.object(answer, "AnswerShards", Answer):
        result = answer_corpus(settings, said.append)
    assert_given_up(result, said, output, {IN_ENCODE: "generate"})
    before = answers_of(output)

    with without_ray():
        again = answer_corpus(settings, said.append)
    assert (again.failures, again.shards_done, again.shards_skipped) == ({}, 1, NUM_SHARDS - 1)
    after = answers_of(output)
    assert len(after) == NUM_SHARDS
    assert {name: after[name] for name in before} == before
    posed = [row["prompt_id"] for row in rows_of(calm, "prompts") if row["status"] == "ok"]
    assert lost_and_doubled(posed, (row["prompt_id"] for row in rows_of(output, "answers"))) == (0, 0)
