"""Answers of a chat server: those of the Transformers engine, whatever happens on the way; what is refused before."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import SecretStr

from jobs import answer_corpus as command
from pipeline.answer import chat_server
from pipeline.answer.chat_server import ChatServer, RequestRefusedError, ServerGoneError
from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Reply, ServerSettings
from pipeline.answer.job import AnswerResult, answer_corpus
from pipeline.answer.openai_engine import OpenAIEngine
from pipeline.answer.served import served_name
from pipeline.answer.settings import AnswerSettings
from pipeline.artifact.artifact import Artifact
from pipeline.budget import Budget
from pipeline.cluster.attempts import Policy
from pipeline.errors import UserError
from pipeline.families.base import Turn
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.generation_settings import Followed, followed
from schemas.answers import FinishReason
from tests.answer.fakes import questions_of
from tests.chat_server import HOST, ChatServerStandIn, TinyModel

REPO = Path(__file__).resolve().parents[2]
KEY = "sk-very-secret"
ASKED = {"tokens": "gain:0.5", "max_new_tokens": 6}


@pytest.fixture(scope="session")
def tiny(tiny_llava) -> TinyModel:
    return TinyModel(tiny_llava)


@pytest.fixture
def server(few, tiny) -> Iterator[ChatServerStandIn]:
    stand_in = ChatServerStandIn(tiny, served_name(Artifact(few).require_job("prune", "--pruned"))).start()
    yield stand_in
    stand_in.kill()


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    """Nothing is waited for long, and no proxy stands between."""
    monkeypatch.setenv("NO_PROXY", HOST)
    monkeypatch.setattr(chat_server, "PAUSES_SEC", (0.02, 0.05, 0.1, 0.2, 0.4, 0.4))
    monkeypatch.setattr("pipeline.answer.openai_engine._PROBE_PAUSES_SEC", (0.01,))


@pytest.fixture
def answer(few, tiny_llava, work_here) -> Callable[..., AnswerResult]:
    """Run the answer job over the few."""

    def run(output: Path, **changes: Any) -> AnswerResult:
        settings = AnswerSettings(pruned=str(few), model=tiny_llava, output=str(output), **{**ASKED, **changes})
        return answer_corpus(settings, lambda _: None)

    return run


@pytest.fixture
def ask(answer, server) -> Callable[..., AnswerResult]:
    """The same, of the server."""
    return lambda output, **changes: answer(output, **{"engine": "openai", "server": server.url, **changes})


@pytest.fixture(scope="session")
def expected(few, tiny_llava, made_once, without_ray) -> list[dict[str, Any]]:
    """Answers of the Transformers engine."""

    def make(output: Path) -> None:
        settings = AnswerSettings(pruned=str(few), model=tiny_llava, output=str(output), **ASKED)
        with without_ray():
            answer_corpus(settings, lambda _: None)

    return rows_of(made_once("served-expected", make))


def rows_of(output: Path) -> list[dict[str, Any]]:
    """All answers, but for the seconds they took."""
    manifest = json.loads((output / "manifest.json").read_text())
    tables = [pq.read_table(output / shard["files"]["answers"]["path"]) for shard in manifest["shards"]]
    return [row for table in tables for row in table.drop_columns(["seconds"]).to_pylist()]


def settings_of(server: ChatServerStandIn, **changes: Any) -> ServerSettings:
    return replace(ServerSettings(server.url, server._name, None, 4, 30.0, False), **changes)


@pytest.fixture
def engine(server, tiny_llava) -> OpenAIEngine:
    checkpoint, family = open_checkpoint(tiny_llava)
    prompter = family.answerer(checkpoint, torch.device("cpu"), torch.float32, language=False)
    assert prompter.model is None, "no weight of the language model is read"
    return OpenAIEngine(prompter, settings_of(server), followed(checkpoint, "openai"))


def test_answers_are_those_of_the_transformers_engine(ask, server, expected, tmp_path):
    """Images keep different numbers of tokens; every token of every answer is the same."""
    result = ask(tmp_path / "out", concurrency=6)
    assert rows_of(tmp_path / "out") == expected
    assert result.prompts == len(expected) >= 20
    assert len({row["tokens"] for row in expected}) > 1
    assert len(server.manners.seen) == len(expected) + 1, "each prompt once, and one to see that all is well"
    record = json.loads((tmp_path / "out" / "_job.json").read_text())
    assert record["settings"]["engine"] == "openai"
    assert record["environment"]["server"] == server.url
    commit = json.loads((tmp_path / "out" / "_commits" / "00000000.json").read_text())
    assert commit["device"] == "server"


def test_faults_on_the_way_change_nothing(ask, server, expected, tmp_path):
    """A quarter of the requests fail, are told to come later or lose their connection."""
    server.manners.share = 0.25
    ask(tmp_path / "out", concurrency=6)
    assert rows_of(tmp_path / "out") == expected
    assert {name for name, count in server.manners.made.items() if count} == {"500", "429", "cut"}


def test_a_server_that_is_killed_and_started_again_loses_nothing(ask, server, expected, tmp_path):
    def kill_and_start() -> None:
        while len(server.manners.seen) < 8:
            time.sleep(0.005)
        server.kill()
        time.sleep(0.15)
        server.start()

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    ask(tmp_path / "out", concurrency=6)
    killer.join()
    assert rows_of(tmp_path / "out") == expected


def test_a_server_that_stays_away_costs_the_shards_in_flight_alone(ask, server, expected, tmp_path, monkeypatch):
    """They are given up with the server's address, and answered by the same command once it is there again."""
    monkeypatch.setattr(chat_server, "PAUSES_SEC", (0.01,))
    chat = server.chat
    answered = itertools.count()
    first = sum(row["shard"] == 0 for row in expected)

    def until_killed(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if next(answered) > first + 3:
            threading.Thread(target=server.kill).start()
            time.sleep(0.2)
        return chat(body)

    monkeypatch.setattr(server, "chat", until_killed)
    result = ask(tmp_path / "out", concurrency=1, retries=0)
    assert (result.shards_done, sorted(result.failures)) == (1, [1, 2])
    assert all(f"--server {server.url} did not answer a request in 2 tries" in why for why in result.failures.values())
    monkeypatch.setattr(server, "chat", chat)
    server.start()
    result = ask(tmp_path / "out", concurrency=6)
    assert (result.shards_done, result.shards_skipped) == (2, 1)
    assert rows_of(tmp_path / "out") == expected


def test_a_failed_try_of_a_shard_is_made_again(few, server, tiny_llava, tmp_path, monkeypatch, answer, expected):
    """By the rules of every stage."""
    monkeypatch.setattr(chat_server, "PAUSES_SEC", ())
    monkeypatch.setattr("pipeline.answer.job.Policy", lambda *_, **named: Policy(1, 60.0, 0.0, **named))
    failed = []
    chat = server.chat

    def fail_once(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if len(server.manners.seen) == 5 and not failed:
            failed.append(body)
            return 503, {"message": "restarting"}
        return chat(body)

    monkeypatch.setattr(server, "chat", fail_once)
    answer(tmp_path / "out", engine="openai", server=server.url, concurrency=1)
    assert failed
    assert rows_of(tmp_path / "out") == expected


def test_what_the_server_refuses_is_a_row_with_its_reason(engine, server, few, monkeypatch):
    chat = server.chat
    questions = questions_of(few, Budget("count", 4))

    def refuse(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if questions[1].prompt in json.dumps(body["messages"]):
            return 400, {"error": {"message": "too\nlong"}}
        return chat(body)

    monkeypatch.setattr(server, "chat", refuse)
    replies = engine.answer(questions, Decoding(2))
    assert replies[1] == Reply.refusal("the server refused the prompt (status 400): too long")
    assert all(reply.text and reply.seconds for number, reply in enumerate(replies) if number != 1)
    assert engine.answer([replace(questions[0], prompt="<image> or <image>")], Decoding(2))[0].message == (
        "the prompt has 2 <image> placeholders; one prompt takes one image"
    )


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ({"token_ids": list(range(9))}, "the server answered with 9 tokens, asked for 2 at most"),
        ({"token_ids": [1, -1]}, "the server's answer has no token ids but [1, -1]"),
        ({"token_ids": "ab"}, "the server's answer has no token ids but 'ab'"),
        ({"token_ids": [2**70]}, f"the server's answer has no token ids but [{2**70}]"),
        ({"told": 7}, "the server poses the prompt as other tokens: what it says they are, 7, are no token ids"),
    ],
)
def test_what_is_no_answer_to_what_was_asked_is_a_row_with_its_reason(engine, server, few, monkeypatch, spoilt, told):
    chat = server.chat

    def spoil(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, answer = chat(body)
        answer["prompt_token_ids"] = spoilt.get("told", answer["prompt_token_ids"])
        answer["choices"][0]["token_ids"] = spoilt.get("token_ids", answer["choices"][0]["token_ids"])
        return status, answer

    monkeypatch.setattr(server, "chat", spoil)
    (reply,) = engine.answer(questions_of(few, Budget("count", 4))[:1], Decoding(2))
    assert (reply.text, reply.message) == (None, told)


def test_a_trusted_answer_that_repeats_the_key_is_kept_without_it(server, few, tiny_llava, monkeypatch):
    server.manners.key, server.manners.tells_tokens = KEY, False
    checkpoint, family = open_checkpoint(tiny_llava)
    prompter = family.answerer(checkpoint, torch.device("cpu"), torch.float32, language=False)
    settings = settings_of(server, api_key=SecretStr(KEY), trust_template=True)
    chat, content = server.chat, [f"Bearer {KEY} !", ["no text"]]

    def repeat(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, answer = chat(body)
        answer["choices"][0]["message"] = {"content": content.pop(0)}
        return status, answer

    monkeypatch.setattr(server, "chat", repeat)
    engine = OpenAIEngine(prompter, replace(settings, concurrency=1), followed(checkpoint, "openai"))
    first, second = engine.answer(questions_of(few, Budget("count", 4))[:2], Decoding(2))
    assert first.text == "Bearer [key] !"
    assert second.message == "the server's answer is no text but ['no text']"


def test_an_end_that_is_none_is_told_without_the_key(server, few, tiny_llava, monkeypatch):
    server.manners.key = KEY
    checkpoint, family = open_checkpoint(tiny_llava)
    prompter = family.answerer(checkpoint, torch.device("cpu"), torch.float32, language=False)
    chat = server.chat

    def abort(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, answer = chat(body)
        answer["choices"][0]["finish_reason"] = f"abort {KEY}"
        return status, answer

    monkeypatch.setattr(server, "chat", abort)
    engine = OpenAIEngine(prompter, settings_of(server, api_key=SecretStr(KEY)), followed(checkpoint, "openai"))
    with pytest.raises(ServerGoneError, match=r"ended an answer by 'abort \[key\]' in place of an end"):
        engine.answer(questions_of(few, Budget("count", 4))[:1], Decoding(2))


def test_a_conversation_whose_system_turn_the_template_leaves_out_is_refused(engine, few):
    question = questions_of(few, Budget("count", 4))[0]
    turns = (Turn("system", "be short"), Turn("user", "what ?"))
    (reply,) = engine.answer([replace(question, prompt=turns)], Decoding(2))
    assert reply.message == "the checkpoint's chat template leaves out what the system says: 'be short'"


def dripping(first: bytes, drop: bytes, pause_sec: float) -> tuple[str, threading.Event]:
    """The address of a server that begins an answer and never ends it; and what ends the server."""
    listener, over = socket.create_server((HOST, 0)), threading.Event()

    def serve() -> None:
        listener.settimeout(0.1)
        while not over.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                connection.settimeout(5.0)
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(first)
                    while not over.wait(pause_sec):
                        connection.sendall(drop)
        listener.close()

    threading.Thread(target=serve).start()
    return f"http://{HOST}:{listener.getsockname()[1]}/v1", over


@pytest.mark.parametrize(
    ("drop", "pause_sec", "told"),
    [
        (b"1\r\n \r\n", 0.05, r"its answer was not whole after 0.5 s"),
        (b"100000\r\n" + b" " * (1 << 20) + b"\r\n", 0.0, r"its answer is larger than 4 MiB"),
    ],
)
def test_an_answer_without_an_end_is_not_waited_for(server, monkeypatch, drop, pause_sec, told):
    monkeypatch.setattr(chat_server, "_MOST_BYTES", 4 << 20)
    url, over = dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", drop, pause_sec)
    try:
        timeout_sec = 0.5 if pause_sec else 30.0
        with pytest.raises(ServerGoneError, match=told):
            ChatServer(settings_of(server, url=url, timeout_sec=timeout_sec), ()).models()
    finally:
        over.set()


def test_an_error_under_status_200_is_told(server, monkeypatch):
    monkeypatch.setattr(server, "chat", lambda body: (200, {"error": {"message": "overloaded"}}))
    with pytest.raises(ServerGoneError, match="at last: status 200 with an error: overloaded"):
        ChatServer(settings_of(server), ()).chat({})


def test_questions_about_one_image_follow_each_other(engine, server, few):
    engine._settings = replace(engine._settings, concurrency=1)
    questions = questions_of(few, Budget("count", 4), 10)
    asked = questions[::2] + questions[1::2]
    assert engine.answer(asked, Decoding(1)) != []
    images = {question.prompt: question.image.image_id for question in questions}
    texts = [body["messages"][0]["content"][-1]["text"] for body in server.manners.seen]
    runs = [name for name, _ in itertools.groupby(images[text] for text in texts)]
    assert len(runs) == len(set(runs)) == 2


def test_as_many_requests_at_once_as_were_asked_for(engine, server, few):
    server.manners.hold_sec = 0.05
    engine.answer(questions_of(few, Budget("count", 4)), Decoding(1))
    assert 2 <= server.manners.most_at_once <= 4
    assert settings_of(server, concurrency=16).shared_by(3).concurrency == 6
    assert settings_of(server, concurrency=1).shared_by(2).concurrency == 1


def test_draws_and_stop_strings_are_asked_for(engine, server, few):
    questions = questions_of(few, Budget("count", 8))
    greedy = engine.answer(questions, Decoding(6))
    drawing = Decoding(6, temperature=5.0, top_p=0.9)
    drawn, again, other = (
        [list(reply.token_ids) for reply in engine.answer(questions, decoding)]
        for decoding in (drawing, drawing, replace(drawing, seed=1))
    )
    assert drawn == again
    assert other != drawn != [list(reply.token_ids) for reply in greedy]
    body = next(body for body in server.manners.seen if "seed" in body)
    assert (body["temperature"], body["top_p"]) == (5.0, 0.9)
    assert body["seed"] in {drawing.seed_of(question.prompt_id) for question in questions}
    text = greedy[0].text
    assert text
    stopped = engine.answer(questions[:1], Decoding(6, stop=(text[1:3], "zzz")))[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(text[1:3])], FinishReason.STOP)


def test_a_form_is_asked_for(engine, few):
    (question,) = questions_of(few, Budget("count", 4), 1)
    body = engine.request(question, Decoding(6, json_schema='{"type":"object"}'), "rows")
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}},
    }
    assert "ignore_eos" not in body, "a form ends by itself"
    assert engine.request(question, Decoding(6, regex="a+"), "rows")["structured_outputs"] == {"regex": "a+"}
    plain = engine.request(question, Decoding(6), "rows")
    assert not {"response_format", "structured_outputs", "seed", "stop"} & plain.keys()
    assert (plain["ignore_eos"], plain["stop_token_ids"], plain["add_special_tokens"]) == (True, [2], True)


@pytest.mark.parametrize(
    ("manners", "changes", "message"),
    [
        ({}, {"served_model": "x"}, r"has no model x, it serves zoo-prune-llava-\w{12}; start one for this artifact"),
        ({"has_plugin": False}, {}, r"answers without the plugin zoo-prune-vllm, .* \(Image embedding dimension"),
        ({"adds_bos": False}, {}, r"poses prompts as other tokens than --model .*: it leaves out the first, 1; start"),
        ({"tells_tokens": False}, {}, r"does not say which tokens .* give --trust-server-template"),
        ({"key": KEY}, {}, r"status 401, Incorrect API key provided:; put the key that it asks for into OPENAI_API"),
        ({"key": KEY}, {"api_key": "sk-wrong-key"}, r"status 401, Incorrect API key provided: \[key\]; put the key"),
        ({"refuse": (400, "no --enable-mm-embeds")}, {}, r"without the plugin .* \(no --enable-mm-embeds\); start it"),
        ({"refuse": (307, "moved")}, {}, r"status 307, it redirects to nowhere, .*; give the address where it is"),
        ({"refuse": (400, "\x1b]0;rm\x07")}, {}, r"\(\\x1b\]0;rm\\x07\)"),
        ({"refuse": (503, "loading")}, {}, r"did not answer a request in 2 tries .*: status 503: loading; start the"),
        ({}, {"server": f"http://{HOST}:9/v1"}, r"ConnectError: .*; start the server, or correct the address"),
        ({}, {"tokens": "9"}, r"--tokens 9: 6 images have fewer tokens stored"),
        ({}, {"positions": "original"}, r"--positions original: --engine openai numbers kept tokens one after"),
        ({}, {"device": "cuda"}, r"--device: with --engine openai the model runs where its server does"),
        ({}, {"server": None}, r"--engine openai asks a server; give its address as --server http://HOST:PORT/v1"),
        ({}, {"engine": "transformers"}, r"--server is for --engine openai, but --engine transformers answers"),
        ({}, {"system": "be short"}, r"--system: the chat template of --model .*, leaves out what it says"),
    ],
)
def test_what_can_not_work_is_refused_before_any_work(ask, server, manners, changes, message, tmp_path):
    """In one sentence, which holds no key; nothing is written."""
    server.manners.__dict__.update(manners)
    with pytest.raises(UserError, match=message) as caught:
        ask(tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert "sk-" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_server_of_another_model_under_the_same_name_is_refused(ask, server, tmp_path, monkeypatch):
    monkeypatch.setattr(server._model, "width", 64)
    with pytest.raises(UserError, match=r"serves another model as zoo-prune-llava-.*: .* this model's have 64"):
        ask(tmp_path / "out")


def test_another_model_than_the_artifacts_is_refused(few, server, tmp_path, tiny_llava):
    other = Path(shutil.copytree(tiny_llava, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "image_seq_length": 4}))
    settings = AnswerSettings(
        pruned=str(few), model=str(other), output=str(tmp_path / "out"), engine="openai", server=server.url
    )
    with pytest.raises(UserError, match="is not the model that pruned"):
        answer_corpus(settings, lambda _: None)


def test_a_server_that_tells_no_tokens_can_be_trusted(ask, server, expected, tmp_path):
    """Then the answer's text is the server's, and its token ids are not known."""
    server.manners.tells_tokens = False
    ask(tmp_path / "out", trust_server_template=True)
    rows = rows_of(tmp_path / "out")
    assert [row["answer"].strip() for row in rows] == [row["answer"].strip() for row in expected]
    assert {len(row["answer_tokens"]) for row in rows} == {0}
    assert json.loads((tmp_path / "out" / "_job.json").read_text())["settings"]["trust_server_template"] is True


def test_a_prompt_that_the_server_poses_otherwise_is_refused_alone(engine, server, few, monkeypatch):
    chat = server.chat
    questions = questions_of(few, Budget("count", 4), 3)

    def other(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, answer = chat(body)
        if questions[2].prompt in json.dumps(body["messages"]):
            answer["prompt_token_ids"][3] += 1
        return status, answer

    monkeypatch.setattr(server, "chat", other)
    replies = engine.answer(questions, Decoding(1))
    assert [reply.text is None for reply in replies] == [False, False, True]
    assert "the server poses the prompt as other tokens: token 3 is" in (replies[2].message or "")


def test_the_key_is_in_no_record_and_no_message(server, few, tiny_llava, work_here, tmp_path, monkeypatch, capfd):
    """Not even where the server repeats it, or dies."""
    server.manners.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(chat_server, "PAUSES_SEC", (0.01,))
    arguments = [
        *("--pruned", str(few), "--model", tiny_llava, "--engine", "openai", "--server", server.url),
        *("--max-new-tokens", "2", "--retries", "0"),
    ]
    saved = ("--save-config", str(tmp_path / "job.yaml"))
    assert command.main([*arguments, *saved, "--output", str(tmp_path / "out")]) == 0
    monkeypatch.setattr(server, "chat", lambda body: (500, {"error": f"no more, {KEY}"}))
    monkeypatch.setattr("pipeline.answer.openai_engine.check_server", lambda *_: None)
    assert command.main([*arguments, "--output", str(tmp_path / "failed")]) != 0
    told = "".join(capfd.readouterr())
    assert "no more, [key]" in told
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert KEY not in told
    assert not [data for data in written if KEY.encode() in data]
    assert KEY not in repr(settings_of(server, api_key=SecretStr(KEY)))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", r"--server localhost:8000: expected http://HOST:PORT/v1, or https"),
        ("http://me:secret@there/v1", r"--server: the address holds a name or password; put the key into OPENAI_API"),
        ("http://there/v1?key=secret", r"expected http://HOST:PORT/v1"),
        ("http://there:1x/v1", r"--server http://there:1x/v1: expected http://HOST:PORT/v1, or https$"),
        ("http://there:99999/v1", r"expected http://HOST:PORT/v1"),
        ("http://[::1/v1", r"--server http://\[::1/v1: expected http://HOST:PORT/v1, or https$"),
        (f"http://{'a' * 70}.x/v1", r"expected http://HOST:PORT/v1"),
        (" http://there/v1", r"expected http://HOST:PORT/v1"),
        ("http://th\nere/v1", r"--server http://th\\nere/v1: expected http://HOST:PORT/v1"),
    ],
)
def test_what_is_no_address_is_refused(url, message):
    with pytest.raises(UserError, match=message) as caught:
        AnswerSettings(pruned="/p", model="m", output="/o", server=url)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-se\ncret", "sk-se cret", "sk-se\tcret", "sk-secr\u00fct", " "])
def test_what_is_no_key_is_refused_and_not_shown(key):
    with pytest.raises(UserError, match=r"^OPENAI_API_KEY holds a blank or a character that is not ASCII") as caught:
        AnswerSettings(pruned="/p", model="m", output="/o", api_key=SecretStr(key))
    assert "sk-" not in str(caught.value)


def test_a_key_may_come_with_the_end_of_its_line(server, few, tiny_llava, work_here, tmp_path, monkeypatch):
    server.manners.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    arguments = ["--pruned", str(few), "--model", tiny_llava, "--engine", "openai", "--server", server.url]
    assert command.main([*arguments, "--max-new-tokens", "2", "--output", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks9://127.0.0.1:1"),
        ("SSL_CERT_FILE", "/not/there.pem"),
        ("HTTP_PROXY", "socks5://127.0.0.1:1"),
    ],
)
def test_an_environment_without_a_way_to_the_server_is_told(server, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=rf"^--server .* \(.+: .+\); correct or unset .*{variable}"):
        ChatServer(settings_of(server))


def test_names_of_models_are_told_without_the_key(ask, server, tmp_path):
    server.manners.key, server._name = KEY, f"gpt, Bearer {KEY}, " + "n" * 3000
    with pytest.raises(UserError, match=r"it serves gpt, Bearer \[key\], n+\.\.\.; start one") as caught:
        ask(tmp_path / "out", api_key=KEY)
    assert len(str(caught.value)) < 700


def test_json_of_any_depth_is_no_answer(server, monkeypatch):
    monkeypatch.setattr(chat_server.httpx2.Response, "json", lambda _: json.loads("[" * 200_000))
    with pytest.raises(ServerGoneError, match="status 200 without JSON"):
        ChatServer(settings_of(server), (0.001,)).models()


def chatting(server: ChatServerStandIn, statuses: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the server is to answer, one after another, then 200; and what it answered."""
    left, told = list(statuses), list[int]()

    def chat(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        told.append(left.pop(0) if left else 200)
        return told[-1], {"message": "so"}

    monkeypatch.setattr(server, "chat", chat)
    return told


def test_what_may_pass_is_asked_again_and_what_is_refused_is_not(server, monkeypatch):
    told = chatting(server, [500, 502, 408, 200, 400, 429, 200], monkeypatch)
    chat = ChatServer(settings_of(server), (0.001,) * 3)
    assert chat.chat({}) == {"message": "so"}
    assert told == [500, 502, 408, 200]
    with pytest.raises(RequestRefusedError, match=r"the server refused the prompt \(status 400\): so"):
        chat.chat({})
    assert chat.chat({}) == {"message": "so"}
    told[:] = []
    chatting(server, [500] * 9, monkeypatch)
    with pytest.raises(ServerGoneError, match=r"in 4 tries over .* s; at last: status 500: so"):
        chat.chat({})


def test_a_busy_server_says_when_to_come_back(server):
    chat = ChatServer(settings_of(server), (0.001,))
    server.manners.refuse, server.manners.retry_after = (429, "busy"), "0.2"
    threading.Timer(0.1, lambda: setattr(server.manners, "refuse", None)).start()
    began = time.monotonic()
    with pytest.raises(RequestRefusedError, match="404"):
        chat.chat({"model": "none"})
    assert 0.2 <= time.monotonic() - began < 2
    server.manners.refuse, server.manners.retry_after = (429, "busy"), "3600"
    with pytest.raises(ServerGoneError, match=r"in 1 tries .* at last: status 429: busy"):
        chat.chat({})


def test_a_date_says_when_to_come_back():
    assert chat_server._retry_after("2.5") == 2.5
    assert chat_server._retry_after("-1") == 0.0
    assert chat_server._retry_after(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=2)
    assert [chat_server._retry_after(text) for text in (None, "soon", "nan", "")] == [None] * 4


def test_a_request_that_takes_too_long_is_asked_again(server):
    server.manners.hold_sec = 0.3
    chat = ChatServer(settings_of(server, timeout_sec=0.05), (0.001,))
    with pytest.raises(ServerGoneError, match=r"in 2 tries .* at last: ReadTimeout"):
        chat.chat({})


def test_generation_settings_that_a_server_does_not_follow_are_refused(tiny_llava, tmp_path):
    checkpoint, _ = open_checkpoint(tiny_llava)
    assert followed(checkpoint, "openai") == Followed([2])
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5], "repetition_penalty": 1.5}')
    assert followed(replace(checkpoint, path=tmp_path), "openai") == Followed([2, 5], 1.5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2, "suppress_tokens": [3]}')
    with pytest.raises(UserError, match=r"ask for suppress_tokens = \[3\], which --engine openai does not follow"):
        followed(replace(checkpoint, path=tmp_path), "openai")


@pytest.mark.slow
def test_a_server_process_is_killed_again_and_again(prune, answer, few, tiny_llava, tmp_path, monkeypatch):
    """At concurrency 16, with faults of every kind among its answers: nothing is lost or doubled, all answers equal."""
    monkeypatch.setattr(chat_server, "PAUSES_SEC", (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0))
    pruned = tmp_path / "pruned"
    prune(pruned, limit=60, shard_size=16, max_tokens="64")
    name = served_name(Artifact(pruned).require_job("prune", "--pruned"))
    port = 18_000 + os.getpid() % 10_000
    arguments = [sys.executable, "-m", "tests.chat_server", tiny_llava, name, str(port), "0.09"]
    over, ends = threading.Event(), 0

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(arguments, cwd=REPO, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def kill_and_start() -> None:
        nonlocal process, ends
        while not over.wait(4.0):
            process.kill()
            process.wait()
            ends += 1
            process = start()

    process = start()
    killer = threading.Thread(target=kill_and_start)
    killer.start()
    asked = {"pruned": str(pruned), "model": tiny_llava, "tokens": "gain:0.3", "max_new_tokens": 12}
    try:
        for engine, of in (
            ("openai", {"server": f"http://{HOST}:{port}/v1", "concurrency": 16}),
            ("transformers", {}),
        ):
            settings = AnswerSettings(**asked, output=str(tmp_path / engine), engine=engine, **of)
            result = answer_corpus(settings, lambda _: None)
            assert not result.failures
            if engine == "openai":
                over.set()
                killer.join()
    finally:
        over.set()
        killer.join()
        process.kill()
        process.wait()
    assert ends >= 2
    assert rows_of(tmp_path / "openai") == rows_of(tmp_path / "transformers")
