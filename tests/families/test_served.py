"""What an engine outside of this process is given: the tokens and rows of the model here, in every family it runs."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Question, ServerSettings
from pipeline.answer.engines import ENGINES
from pipeline.answer.openai_engine import OpenAIEngine, check_server
from pipeline.answer.posing import check_system
from pipeline.answer.served import ARCHITECTURES
from pipeline.answer.transformers_engine import TransformersEngine
from pipeline.budget import Budget
from pipeline.families.base import Prompter, Turn
from pipeline.families.generation_settings import followed, generation_config
from tests.chat_server import ChatServerStandIn, TinyModel
from tests.families.models import TINY

SERVED = ENGINES["openai"].families or ()
PROMPTS = [
    "what is this",
    "how many red w3 in the picture of this",
    "w9 <image> w1",
    (Turn("user", "what is this"), Turn("assistant", "w5"), Turn("user", "how many w6")),
]


# In the suite those that differ most: newlines, places on a grid and deepstack rows.
IN_THE_SUITE = ("llava_next", "qwen3_vl")


def some(names: Iterable[str]) -> list[Any]:
    """Parameters, of which all but a few are slow."""
    return [pytest.param(name, marks=() if name in IN_THE_SUITE else pytest.mark.slow) for name in names]


def prompter_of(case, positions: str | None = None) -> Prompter:
    checkpoint, family = case.opened
    return family.answerer(checkpoint, torch.device("cpu"), torch.float32, positions, language=False)


@pytest.mark.parametrize("name", some(TINY))
def test_tokens_and_rows_are_made_without_the_language_model(case, name):
    case = case(name)
    prompter, answerer = prompter_of(case), case.answerer()
    assert prompter.model is None
    assert prompter.width == case.stock.get_input_embeddings().weight.shape[1] * (3 if name == "qwen3_vl" else 1)
    for budget in (Budget("all"), Budget("count", 1)):
        for image in case.kept(budget).values():
            ids = answerer.token_ids("what is this", image)
            assert prompter.token_ids("what is this", image) == ids
            embeds = prompter.image_embeds(image)
            rows = embeds["image_embeds"]
            assert rows.shape == (ids.count(prompter.image_token_id), prompter.width)
            assert torch.equal(rows, answerer.image_embeds(image)["image_embeds"])
            given = answerer.image_inputs([image], torch.tensor([ids]), torch.ones(1, len(ids)))["mm_encoder_outputs"]
            pooled = given["image"].pooler_output
            features = pooled if isinstance(pooled, torch.Tensor) else torch.cat(list(pooled))
            assert torch.equal(rows[:, : features.shape[1]], features)
            if "kept_hw" in embeds:
                assert embeds["kept_hw"].shape == (len(rows), 2)
                assert bool((embeds["kept_hw"] < embeds["true_hw"]).all())


@pytest.mark.parametrize("name", some(SERVED))
def test_a_server_answers_token_for_token_as_transformers(case, name):
    """One token, some and all of them, in one call; conversations, and images in the midst of the words."""
    case = case(name)
    checkpoint, _ = case.opened
    kept = [case.kept(budget) for budget in (Budget("count", 1), Budget("count", 17), Budget("all"))]
    questions = [
        Question(prompt, kept[(number + place) % 3][f"{number:064x}"], f"{number}-{place}")
        for number in range(len(case.images))
        for place, prompt in enumerate(PROMPTS)
    ]
    stand_in = ChatServerStandIn(TinyModel(str(case.folder)), "tiny").start()
    try:
        server = ServerSettings(stand_in.url, "tiny", None, 3, 30.0, False)
        prompter, its, decoding = prompter_of(case), followed(checkpoint, "openai"), Decoding(6)
        check_server(server, prompter, decoding, its, name)
        served = OpenAIEngine(prompter, server, its).answer(questions, decoding)
    finally:
        stand_in.kill()
    own = TransformersEngine(case.answerer(), batch_size=8, batch_tokens=1 << 15).answer(questions, decoding)
    assert [replace(reply, seconds=0.0) for reply in served] == [replace(reply, seconds=0.0) for reply in own]
    assert [reply.message for reply in own] == [None] * len(own)


@pytest.mark.parametrize("name", some(TINY))
def test_what_a_server_is_told_of_generation_is_what_the_model_does(case, name):
    case = case(name)
    checkpoint, _ = case.opened
    config, ours = case.answerer().model.generation_config, generation_config(checkpoint)
    assert (ours.eos_token_id, ours.repetition_penalty) == (config.eos_token_id, config.repetition_penalty)


def test_the_system_is_posed_where_the_template_writes_its_turns(case):
    check_system(prompter_of(case("llava_next")), "llava_next", "w5 w6")


def test_every_family_that_is_served_has_an_architecture():
    assert set(ARCHITECTURES) >= set(SERVED)
