"""How answers are decoded: what is drawn, where an answer ends, what the system says."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.answer.decoding import Decoding, decoding_of, finished
from pipeline.answer.posing import check_system, prompt_ids, with_system
from pipeline.answer.settings import AnswerSettings
from pipeline.answer.steps import drawn_tokens
from pipeline.errors import UserError
from pipeline.families.base import Turn, UnusablePromptError
from schemas.answers import FinishReason
from tests.answer.fakes import IMAGE, FakeAnswerer, question

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
NEEDED = {"pruned": "/p", "model": "m", "output": "/o"}


class Letters:
    """A tokenizer of letters; 0 is a special token, 1 a line break."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join("\n" if token == 1 else chr(95 + token) for token in ids if token)


def letters(text: str) -> list[int]:
    return [1 if letter == "\n" else ord(letter) - 95 for letter in text]


@pytest.mark.parametrize(
    ("tokens", "stop", "text", "kept", "reason"),
    [
        ("abc", (), "abc", "abc", LENGTH),
        ("abc", ("x",), "abc", "abc", LENGTH),
        ("abcd", ("bc",), "a", "abc", STOP),
        ("abcd", ("c", "ab"), "", "ab", STOP),
        ("ab\nc", ("c", "\n"), "ab", "ab\n", STOP),
    ],
)
def test_an_answer_ends_before_a_stop_string(tokens, stop, text, kept, reason):
    found = finished(Letters(), letters(tokens), [], stop)
    assert (found.text, found.token_ids, found.finish_reason) == (text, letters(kept), reason)


def test_an_answer_ends_at_the_end_or_at_a_stop_string_whichever_is_first():
    """What follows is padding. An end that is no special token is part of the text, and may complete a stop string."""
    for stop, text, kept in (((), "ab", "ab"), (("b",), "a", "ab"), (("c",), "ab", "ab")):
        found = finished(Letters(), [*letters("ab"), 0, *letters("cc")], [0], stop)
        assert (found.text, found.token_ids, found.finish_reason) == (text, letters(kept), STOP)
    ended = finished(Letters(), [*letters("ab"), 1, 5], [1], ())
    assert (ended.text, ended.token_ids, ended.finish_reason) == ("ab\n", letters("ab"), STOP)
    cut = finished(Letters(), [*letters("ab"), 1, 5], [1], ("b\n",))
    assert (cut.text, cut.token_ids, cut.finish_reason) == ("a", letters("ab"), STOP)


def naive_draw(p: list[float], number: float, top_p: float) -> int:
    """By the definition in the docstring, in plain Python."""
    nucleus, mass = set(), 0.0
    for token in sorted(range(len(p)), key=lambda one: -p[one]):
        if mass >= top_p:
            break
        nucleus.add(token)
        mass += p[token]
    whole = sum(p[token] for token in nucleus)
    below = 0.0
    for token in sorted(nucleus):
        below += p[token]
        if number * whole < below:
            return token
    return max(nucleus)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12, unique=True),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_a_draw_is_that_of_the_definition(scores, number, top_p, temperature):
    scores_V = torch.tensor(scores)
    p = (scores_V.double() / temperature).softmax(0).tolist()
    (token,) = drawn_tokens(scores_V[None], torch.tensor([number]), temperature=temperature, top_p=top_p).tolist()
    expected = naive_draw(p, number, top_p)
    assert token == expected or abs(number * sum(p) - sum(p[: max(token, expected)])) < 1e-9


def test_draws_have_the_probabilities_of_the_model():
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    decoding = Decoding(1, temperature=1.0)
    numbers = torch.tensor([decoding.draw(f"p{n}", 0) for n in range(4000)], dtype=torch.float64)
    found = Counter(drawn_tokens(p.log().expand(4000, -1), numbers, temperature=1.0, top_p=1.0).tolist())
    assert found[1] == 0
    assert [found[token] / 4000 for token in (0, 2, 3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    only = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert drawn_tokens(only, last, temperature=1.0, top_p=1.0).tolist() == [0]


def test_draws_belong_to_seed_prompt_and_step():
    decoding = Decoding(1, seed=3)
    numbers = [
        decoding.draw("a", 0), decoding.draw("a", 1), decoding.draw("b", 0), Decoding(1, seed=4).draw("a", 0),
        decoding.draw("a\n1", 2), decoding.draw("a", 12),
    ]  # fmt: skip
    assert len(set(numbers)) == len(numbers)
    assert decoding.draw("a", 0) == numbers[0]
    assert all(0 <= number < 1 for number in numbers)
    assert decoding.seed_of("a") != decoding.seed_of("b")
    assert 0 <= decoding.seed_of("a") < 2**63


def test_the_system_speaks_first_and_a_conversation_keeps_its_own():
    assert with_system("hi", None) == "hi"
    assert with_system("hi", "be short") == (Turn("system", "be short"), Turn("user", "hi"))
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    assert with_system(turns, "s") == (Turn("system", "s"), *turns)
    own = (Turn("system", "mine"), Turn("user", "a"))
    assert with_system(own, "s") == own


def test_prompts_are_posed_with_what_the_system_says():
    answerer = FakeAnswerer()
    posed: list[object] = []
    answerer.token_ids = lambda prompt, image: posed.append(prompt) or [IMAGE]  # type: ignore[method-assign]
    prompt_ids(answerer, question("2"), Decoding(1, system="be short"))
    assert posed == [(Turn("system", "be short"), Turn("user", "2"))]


def refuse(turns: object) -> str:
    raise UnusablePromptError("roles must alternate")


@pytest.mark.parametrize(
    ("template", "render", "why"),
    [
        ("t", lambda turns: "user: x", "leaves out what it says"),
        ("t", refuse, r"refuses it \(roles must alternate\)"),
        (None, refuse, "is missing"),
    ],
)
def test_a_template_without_a_place_for_the_system_is_refused(template, render, why):
    prompter = SimpleNamespace(render=render, tokenizer=SimpleNamespace(chat_template=template))
    with pytest.raises(UserError, match=f"--system: the chat template of --model m, which .*, {why}; leave the option"):
        check_system(prompter, "m", "be short")  # type: ignore[arg-type]
    takes = SimpleNamespace(render=lambda turns: f"<{turns[0].text}> x", tokenizer=None)
    check_system(takes, "m", "be short ")  # type: ignore[arg-type]


def test_the_settings_say_how_answers_are_decoded(tmp_path):
    path = tmp_path / "form.json"
    path.write_text('{"type": "object",\n "b": "é"}')
    made = AnswerSettings(**NEEDED, temperature=0.5, top_p=0.9, seed=2, stop=("x",), json_schema=str(path), system="s")
    assert decoding_of(made) == Decoding(
        64, 0.5, 0.9, 2, ("x",), json_schema='{"b":"é","type":"object"}', regex=None, system="s"
    )
    assert json.loads(decoding_of(made).json_schema or "") == json.loads(path.read_text())
    assert decoding_of(AnswerSettings(**NEEDED)) == Decoding(64)
    assert Decoding(64).is_greedy
    assert not Decoding(64).is_structured


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_p": 0.5}, "--top-p 0.5: nothing is drawn without a --temperature"),
        ({"temperature": -1}, "--temperature -1: expected at least 0"),
        ({"top_p": 0, "temperature": 1}, "--top-p 0: expected above 0"),
        ({"top_p": 1.5, "temperature": 1}, "--top-p 1.5: expected above 0 and at most 1$"),
        ({"stop": ("",)}, "--stop '': expected a text that is not empty"),
        ({"regex": "("}, r"--regex \(: missing \), unterminated subpattern"),
        ({"regex": "a", "json_schema": "s.json"}, "--json-schema and --regex: an answer has one form"),
        ({"json_schema": "gone.json"}, r"--json-schema: .*gone\.json does not exist; name a file"),
        ({"json_schema": "bad.json"}, r"--json-schema .*bad\.json is not JSON \(Expecting property name"),
        ({"json_schema": "list.json"}, r"--json-schema .*list\.json holds no JSON object"),
    ],
)
def test_what_makes_no_decoding_is_refused(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{oh")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match=message) as caught:
        decoding_of(AnswerSettings(**NEEDED, **given))
    assert "\n" not in str(caught.value)
