"""vLLM answers token for token as Transformers does: every family, budgets mixed, rounds with caching."""

import json
from functools import lru_cache

import pytest
import torch

from pipeline.answer.engines import ENGINES
from pipeline.answer.transformers_engine import TransformersEngine
from pipeline.families.checkpoint import open_checkpoint
from tests.vllm.in_vllm import DECODINGS
from tests.vllm.made import FORMS, KEPT, questions
from tests.vllm.models import build_for_vllm

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def asked(tmp_path_factory, run_in_vllm):
    """What a family's model answered in vLLM, and in Transformers here."""

    @lru_cache
    def ask(family: str):
        folder = tmp_path_factory.mktemp(family)
        build_for_vllm(family, folder / "model")
        run_in_vllm("tests.vllm.in_vllm", str(folder / "model"), family, str(folder / "found.json"))
        checkpoint, adapter = open_checkpoint(str(folder / "model"))
        answerer = adapter.answerer(checkpoint, torch.device("cpu"), torch.float32)
        engine = TransformersEngine(answerer, batch_size=16, batch_tokens=1 << 15)
        expected = {name: engine.answer(questions(family), decoding) for name, decoding in DECODINGS.items()}
        return json.loads((folder / "found.json").read_text()), expected

    return ask


def test_every_family_that_vllm_serves_is_tested():
    assert set(FORMS) == set(ENGINES["vllm"].families)


@pytest.mark.parametrize("family", FORMS)
def test_answers_are_those_of_transformers(asked, family):
    found, expected = asked(family)
    assert {len(question.image.indices_K) for question in questions(family)} > {*KEPT} - {None}, "budgets are mixed"
    assert len(questions(family)) >= 40
    for name, replies in expected.items():
        told = [(reply["token_ids"], reply["text"], reply["finish_reason"], reply["message"]) for reply in found[name]]
        assert told == [(list(r.token_ids), r.text, r.finish_reason, None) for r in replies], name
    assert len({tuple(reply.token_ids) for reply in expected["first round"]}) > 40, "image and prompt both matter"
    assert any(reply.finish_reason == "stop" for reply in expected["stopped"])


@pytest.mark.parametrize("family", FORMS)
def test_beginnings_are_shared_and_no_tower_is_there(asked, family):
    found, _ = asked(family)
    assert found["cached_tokens"] > found["prompt_tokens"] / 2
    of_language = [name for name in found["parameters"] if name.startswith("language_model.")]
    assert of_language
    # What is not read for pruned images, whose newlines come among their rows, and is no part of the tower.
    assert {*found["parameters"]} - {*of_language} <= {"image_newline"}


@pytest.mark.parametrize("family", FORMS)
def test_bad_requests_are_refused_and_harm_nothing(asked, family):
    found, _ = asked(family)
    on_grid = family.startswith("qwen")
    expected = {"width", "whole numbers", "no row", "pixels", "expanded"}
    assert set(found["refusals"]) == expected | ({"no places", "outside", "too few places"} if on_grid else set())
    assert None not in found["refusals"].values()
    assert "takes exactly one" in found["refusals"]["expanded"]
    assert found["after refusals"] == found["first round"]


def test_draws_belong_to_the_question(asked):
    found, _ = asked("llava")
    forth, back = found["drawn"]
    assert forth == back[::-1]
    assert forth != found["first round"]
