"""What the vllm engine asks of vLLM, and what becomes of its answers; a stand-in generates."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Engine
from pipeline.answer.engines import ENGINES
from pipeline.answer.served import ARCHITECTURES, LIMITS
from pipeline.answer.vllm_engine import Request, VllmEngine, key_of, load
from pipeline.cluster.attempts import ProcessSpentError
from pipeline.errors import UserError
from pipeline.families.base import KeptImage
from pipeline.families.generation_settings import Followed
from schemas.answers import FinishReason
from tests.answer.fakes import END, IMAGE, WORD, FakeAnswerer, question


class FakePrompter(FakeAnswerer):
    def __init__(self, context: int | None = None) -> None:
        super().__init__(context)
        self.embedded: list[str] = []

    def image_embeds(self, image: KeptImage) -> dict[str, torch.Tensor]:
        self.embedded.append(image.image_id)
        return {"image_embeds": image.features_KO}


class FakeVllm:
    """Generates `WORD` and then an end; refuses token 6 and dies over token 8."""

    def __init__(self, context: int = 100) -> None:
        self.context = context
        self.requests: list[Request] = []
        self.waiting: list[Request] = []

    def add(self, request: Request) -> None:
        if 6 in request.token_ids:
            raise ValueError("no sixes,\nplease")
        self.requests.append(request)
        self.waiting.append(request)

    def run(self) -> list[list[int]]:
        waiting, self.waiting = self.waiting, []
        if any(8 in request.token_ids for request in waiting):
            raise RuntimeError("out of order")
        return [[WORD] * (2 + request.token_ids.count(2)) + [END] for request in waiting]


@pytest.fixture
def vllm() -> FakeVllm:
    return FakeVllm()


@pytest.fixture
def prompter() -> FakePrompter:
    return FakePrompter()


@pytest.fixture
def engine(prompter, vllm) -> Engine:
    return VllmEngine(prompter, vllm, Followed([END], 1.5))


def test_prompts_about_an_image_follow_each_other_and_replies_come_in_order(engine, prompter, vllm):
    questions = [question("4", "a", 3), question("22", "b"), question("44", "a", 3), question("2", "b")]
    questions[2] = type(questions[2])(questions[2].prompt, questions[0].image)
    replies = engine.answer(questions, Decoding(9))
    ids = [request.token_ids for request in vllm.requests]
    assert ids == [[IMAGE, 4], [IMAGE, 4, 4], [IMAGE, 2, 2], [IMAGE, 2]], "one image token, whatever the image keeps"
    assert prompter.embedded == ["a", "b", "b"], "once for prompts about one kept image"
    assert [len(reply.token_ids) for reply in replies] == [2, 4, 2, 3]
    assert {reply.finish_reason for reply in replies} == {FinishReason.STOP}
    assert {reply.message for reply in replies} == {None}
    assert all(reply.seconds > 0 for reply in replies)
    assert replies[3].text == f" {WORD} {WORD} {WORD} {END} "


def test_what_is_asked_of_the_sampling(engine, vllm):
    engine.answer([question("4")], Decoding(5))
    engine.answer(
        [question("4")], Decoding(5, temperature=0.7, top_p=0.9, seed=3, stop=("x",), json_schema='{"type": "object"}')
    )
    engine.answer([question("4")], Decoding(5, regex="a+"))
    greedy, drawn, regex = (dict(request.sampling) for request in vllm.requests)
    assert greedy == {
        "repetition_penalty": 1.5,
        "max_tokens": 5,
        "temperature": 0.0,
        "stop_token_ids": [END],
        "ignore_eos": True,
        "detokenize": False,
    }
    more = {
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": Decoding(5, seed=3).seed_of(""),
        "stop": ["x"],
        "detokenize": True,
        "structured_outputs": {"json": '{"type": "object"}'},
        "ignore_eos": False,
    }
    assert drawn == {**greedy, **more}
    assert regex == {**greedy, "structured_outputs": {"regex": "a+"}, "ignore_eos": False}


def test_what_is_refused_is_a_reply_and_costs_the_others_nothing(prompter):
    engine = VllmEngine(prompter, FakeVllm(context=6), Followed([END]))
    asked = [question("4"), question("6"), question("no!"), question("4444"), question("2")]
    replies = engine.answer(asked, Decoding(5))
    assert [reply.message for reply in replies] == [
        None,
        "vLLM refuses the prompt: no sixes, please",
        "no! can't be posed",
        "the prompt has 6 tokens with its image, and vLLM takes 6 with the answer; shorten it, answer with fewer "
        "--tokens, or give vLLM more memory",
        None,
    ]
    assert [reply.finish_reason for reply in replies[1:4]] == [FinishReason.REFUSED] * 3


def test_a_vllm_that_dies_spends_its_process(engine):
    with pytest.raises(ProcessSpentError, match="vLLM died: RuntimeError: out of order"):
        engine.answer([question("4"), question("8")], Decoding(5))


def test_a_key_names_the_image_and_all_that_is_given_of_it():
    rows = torch.arange(12.0).view(4, 3)
    one = {"image_embeds": rows, "kept_hw": torch.zeros(4, 2, dtype=torch.int64)}
    others = [
        {**one, "image_embeds": rows[:3]},
        {**one, "image_embeds": rows + torch.finfo().tiny},
        {**one, "image_embeds": rows.view(6, 2)},
        {**one, "image_embeds": rows.bfloat16()},
        {**one, "kept_hw": one["kept_hw"] + 1},
        {"image_embeds": rows},
    ]
    keys = {key_of("a", image) for image in [one, *others]} | {key_of("b", one)}
    assert len(keys) == len(others) + 2
    assert key_of("a", {name: tensor.clone() for name, tensor in reversed(one.items())}) == key_of("a", one)
    assert key_of("a", one).startswith("a-4-")
    strided = torch.stack([rows, rows], 2)[..., 0]
    assert key_of("a", {**one, "image_embeds": strided}) == key_of("a", one)


@pytest.fixture
def settings(tiny_llava):
    return SimpleNamespace(
        model=tiny_llava, dtype="float32", positions=None, batch_size=4, batch_tokens=5_000, gpu_share=1.0
    )


@pytest.mark.parametrize(("batch_tokens", "expected"), [(5_000, 5_000), (1, 4)])
def test_bounds_of_a_batch_are_those_of_vllm(settings, monkeypatch, batch_tokens, expected):
    """Which takes no fewer tokens than requests."""
    given = {}

    def llm(model, **options):
        given.update(options)
        config = SimpleNamespace(max_model_len=64)
        return SimpleNamespace(llm_engine=SimpleNamespace(model_config=config))

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm))
    monkeypatch.setitem(sys.modules, "zoo_prune_vllm", SimpleNamespace())
    settings.batch_tokens = batch_tokens
    load(settings, torch.device("cpu"))
    assert (given["max_num_seqs"], given["max_num_batched_tokens"]) == (4, expected)


def test_an_environment_without_vllm_is_refused_by_the_worker(settings):
    with pytest.raises(UserError, match=r"^--engine vllm: a worker's environment lacks vllm \(") as refused:
        load(settings, torch.device("cpu"))
    assert len(str(refused.value).splitlines()) == 1


def test_the_plugin_has_an_architecture_for_every_family_that_is_served():
    """Its list imports nothing of vLLM, so it can be read here."""
    file = Path(__file__).resolve().parents[2] / "integrations" / "vllm" / "zoo_prune_vllm" / "__init__.py"
    spec = importlib.util.spec_from_file_location("zoo_prune_vllm_list", file)
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    assert {name: model.architecture for name, model in plugin.MODELS.items()} == ARCHITECTURES
    assert set(ENGINES["vllm"].families) > set(ENGINES["openai"].families)
    assert plugin.LIMITS == LIMITS
