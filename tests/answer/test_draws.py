"""Draws and stop strings of the Transformers engine: each answer is its question's own, whatever runs beside it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Question
from pipeline.answer.job import answer_corpus
from pipeline.answer.settings import AnswerSettings
from pipeline.answer.transformers_engine import TransformersEngine
from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.families.base import Answerer
from pipeline.families.checkpoint import open_checkpoint
from schemas.answers import FinishReason
from tests.answer.fakes import questions_of
from tests.answer.test_decoding import naive_draw

DRAWING = Decoding(5, temperature=4.0, top_p=0.95)


@pytest.fixture(scope="module")
def answerer(tiny_llava) -> Answerer:
    checkpoint, family = open_checkpoint(tiny_llava)
    return family.answerer(checkpoint, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def questions(few) -> list[Question]:
    return questions_of(few, Budget("count", 6), 9)


def tokens(
    answerer: Answerer, questions: list[Question], decoding: Decoding, batch_size: int = 9
) -> dict[str, list[int]]:
    engine = TransformersEngine(answerer, batch_size=batch_size, batch_tokens=1 << 15)
    replies = engine.answer(questions, decoding)
    return {question.prompt_id: list(reply.token_ids) for question, reply in zip(questions, replies, strict=True)}


def test_what_is_drawn_belongs_to_the_question(answerer, questions):
    """Not to batches, neighbours or order; the same question under another id draws anew."""
    drawn = tokens(answerer, questions, DRAWING)
    assert tokens(answerer, questions, DRAWING, batch_size=1) == drawn
    some = tokens(answerer, questions[::-2], DRAWING, batch_size=4)
    assert some == {prompt_id: drawn[prompt_id] for prompt_id in some}
    assert drawn != tokens(answerer, questions, Decoding(5))
    assert drawn != tokens(answerer, questions, replace(DRAWING, seed=1))
    same = [replace(questions[0], prompt_id=f"{n}") for n in range(6)]
    assert len({tuple(one) for one in tokens(answerer, same, DRAWING).values()}) > 1


def test_the_first_token_is_the_one_that_the_models_probabilities_draw(answerer, questions):
    drawn = tokens(answerer, questions, replace(DRAWING, top_p=0.6))
    for question in questions[:4]:
        ids = torch.tensor([answerer.token_ids(question.prompt, question.image)])
        inputs = answerer.image_inputs([question.image], ids, torch.ones_like(ids))
        with torch.inference_mode():
            logits = answerer.model(input_ids=ids, **inputs).logits[0, -1]
        p = (logits.double() / DRAWING.temperature).softmax(0).tolist()
        token = naive_draw(p, DRAWING.draw(question.prompt_id, 0), 0.6)
        assert drawn[question.prompt_id][:1] == ([token] if token != 2 else [])


def test_a_stop_string_ends_its_row_and_no_other(answerer, questions):
    engine = TransformersEngine(answerer, batch_size=9, batch_tokens=1 << 15)
    long = [replace(one, prompt="describe the image .") if n < 3 else one for n, one in enumerate(questions)]
    free = engine.answer(long, Decoding(12))
    stop = (free[0].text or "")[4:9]
    stopped = engine.answer(long, Decoding(12, stop=(stop, "never said")))
    assert any(stop in (reply.text or "") for reply in free)
    for before, after in zip(free, stopped, strict=True):
        assert before.text is not None
        assert after.text == before.text.partition(stop)[0]
        if stop in before.text:
            assert after.finish_reason is FinishReason.STOP
            assert list(after.token_ids) == list(before.token_ids)[: len(after.token_ids)]
            decoded = answerer.tokenizer.decode(list(after.token_ids), skip_special_tokens=True)
            assert stop in decoded
            assert stop not in answerer.tokenizer.decode(list(after.token_ids)[:-1], skip_special_tokens=True)
        else:
            assert (after.token_ids, after.finish_reason) == (before.token_ids, before.finish_reason)


@pytest.fixture
def answer(tiny_llava, work_here) -> Callable[..., dict[str, Any]]:
    """Run the job; texts by prompt id."""

    def run(pruned: Path, output: Path, **changes: Any) -> dict[str, Any]:
        asked = {"tokens": "6", "max_new_tokens": 5, "temperature": 4.0, **changes}
        settings = AnswerSettings(pruned=str(pruned), model=tiny_llava, output=str(output), **asked)
        answer_corpus(settings, lambda _: None)
        manifest = json.loads((output / "manifest.json").read_text())
        tables = [pq.read_table(output / shard["files"]["answers"]["path"]) for shard in manifest["shards"]]
        return {row["prompt_id"]: row["answer_tokens"] for table in tables for row in table.to_pylist()}

    return run


def test_shards_do_not_change_what_is_drawn_and_the_record_says_how_it_was(few, prune, answer, tmp_path):
    prune(tmp_path / "one", limit=6, shard_size=6, max_tokens="6")
    drawn = answer(few, tmp_path / "a", seed=3, stop=("zzz",))
    assert answer(tmp_path / "one", tmp_path / "b", seed=3, batch_size=5) == drawn
    settings = json.loads((tmp_path / "a" / "_job.json").read_text())["settings"]
    kept = {
        name: settings[name] for name in ("temperature", "top_p", "seed", "stop", "engine", "system", "json_schema")
    }
    assert kept == {
        "temperature": 4.0, "top_p": 1.0, "seed": 3, "stop": ["zzz"], "engine": "transformers", "system": None,
        "json_schema": None,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"other settings:\n +seed: 3 -> 4"):
        answer(few, tmp_path / "a", seed=4, stop=("zzz",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"json_schema": "form.json"},
            "--json-schema: --engine transformers can't keep answers to a form; .* vllm or",
        ),
        ({"regex": "a+"}, "--regex: --engine transformers can't keep answers to a form"),
        ({"engine_python": "python"}, "--engine-python is for --engine vllm, but --engine transformers answers"),
        ({"concurrency": 3}, "--concurrency is for --engine openai, but --engine transformers answers"),
        ({"system": "be short"}, "--system: the chat template of --model .* leaves out what it says"),
    ],
)
def test_what_the_engine_can_not_do_is_refused_before_any_work(answer, few, changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        answer(few, tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
