"""The engine that asks a chat server of OpenAI's protocol which takes `image_embeds`: vLLM's, with our plugin.

Requests hold the conversation and the kept rows of its image. The server puts them into its chat template, so what it
makes of a prompt is compared with our own token ids, wherever it tells.
"""

import base64
import io
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache
from threading import Event, Lock
from typing import Any

import torch
from torch import Tensor

from pipeline.answer.chat_server import ChatServer, RequestRefusedError, ServerGoneError
from pipeline.answer.decoding import Decoding, finished
from pipeline.answer.engine import Question, Reply, ServerSettings
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.answer.posing import prompt_ids, with_system
from pipeline.corpus.sample import shown
from pipeline.errors import UserError
from pipeline.families.base import KeptImage, Prompter, UnusablePromptError, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.generation_settings import Followed, followed
from pipeline.families.prompting import takes_special_tokens
from schemas.answers import FinishReason
from schemas.stored import StoredSelection

ENGINE = "openai"
_PROBE_PAUSES_SEC = (0.25, 0.5, 1.0)
_REMEMBERED = 4  # encoded images: questions about one follow each other
_MOST_TOKENS = 1 << 31  # of a vocabulary
_NO_KEY, _NO_SUCH = (401, 403), (404, 405)


def load(settings: GenerateSettings, device: torch.device) -> Callable[[int], "OpenAIEngine"]:
    """The engine, whatever the batch size: the server makes its own batches."""
    assert settings.server is not None, "the job settles it"
    checkpoint, family = open_checkpoint(settings.model)
    prompter = family.answerer(checkpoint, device, torch_dtype(settings.dtype), settings.positions, language=False)
    engine = OpenAIEngine(prompter, settings.server, followed(checkpoint, ENGINE))
    return lambda batch_size: engine


class OpenAIEngine:
    """An `Engine` that is a server.

    Args:
        prompter: of the checkpoint that the server serves.
        server: how it is reached.
        its: generation settings of the checkpoint.
    """

    def __init__(self, prompter: Prompter, server: ServerSettings, its: Followed) -> None:
        self._prompter, self._settings, self._followed = prompter, server, its
        self._server = ChatServer(server)

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Reply]:
        """Replies to questions, in their order. Those about one image follow each other, so that the server can share.

        Raises:
            ServerGoneError: the server did not answer one of them.
            UserError: the server does not do what was agreed on with it.
        """
        if not questions:
            return []
        began, given_up = time.perf_counter(), Event()
        place_of: dict[str, int] = {}
        for question in questions:
            place_of.setdefault(question.image.image_id, len(place_of))
        order = sorted(range(len(questions)), key=lambda number: place_of[questions[number].image.image_id])
        first_of: dict[int, int] = {}  # an image's address -> the first question about it
        firsts = [first_of.setdefault(id(question.image), number) for number, question in enumerate(questions)]
        encoding = Lock()

        @lru_cache(maxsize=_REMEMBERED)
        def encoded(first: int) -> str | dict[str, str]:
            return _embeds(self._prompter.image_embeds(questions[first].image))

        def embeds(number: int) -> str | dict[str, str]:
            with encoding:  # threads that ask about one image wait for one of them to encode it
                return encoded(firsts[number])

        def reply(number: int) -> Reply:
            return self._reply(questions[number], decoding, lambda: embeds(number), given_up)

        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            asked = {number: pool.submit(reply, number) for number in order}
            try:
                wait(asked.values(), return_when=FIRST_EXCEPTION)
            finally:
                given_up.set()
                pool.shutdown(cancel_futures=True)
        failed = [one.exception() for one in asked.values() if not one.cancelled() and one.exception() is not None]
        for error in sorted(failed, key=lambda one: not isinstance(one, UserError)):
            assert error is not None
            raise error
        seconds = (time.perf_counter() - began) / len(questions)
        return [_timed(asked[number].result(), seconds) for number in range(len(questions))]

    def _reply(self, question: Question, decoding: Decoding, embeds: Callable[[], Any], given_up: Event) -> Reply:
        try:
            ids = prompt_ids(self._prompter, question, decoding)
        except UnusablePromptError as error:
            return Reply.refusal(str(error))
        body = self.request(question, decoding, embeds())
        try:
            response = self._server.chat(body, given_up)
        except RequestRefusedError as error:
            if error.status in (*_NO_KEY, *_NO_SUCH):
                raise UserError(_not_ours(self._settings, error)) from error
            return Reply.refusal(str(error))
        if difference := _difference(ids, response, self._settings):
            return Reply.refusal(f"the server poses the prompt as other tokens: {difference}")
        return self._ended(response, decoding)

    def request(self, question: Question, decoding: Decoding, embeds: Any) -> dict[str, Any]:
        """The body of a chat request."""
        prompt = with_system(question.prompt, decoding.system)
        messages = self._prompter.messages(prompt)
        for message in messages:
            message["content"] = [
                {"type": "image_embeds", "image_embeds": embeds} if part["type"] == "image" else part
                for part in message["content"]
            ]
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": messages,
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": self._followed.repetition_penalty,
            "add_special_tokens": takes_special_tokens(self._prompter.tokenizer, self._prompter.render(prompt)),
            "return_token_ids": True,
        }
        if not decoding.is_greedy:
            body["seed"] = decoding.seed_of(question.prompt_id)
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if decoding.json_schema is not None:
            schema = {"name": "answer", "schema": json.loads(decoding.json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if decoding.regex is not None:
            body["structured_outputs"] = {"regex": decoding.regex}
        if not decoding.is_structured:  # a form ends with the end that the server knows
            body["ignore_eos"], body["stop_token_ids"] = True, self._followed.ends
        return body

    def _ended(self, response: dict[str, Any], decoding: Decoding) -> Reply:
        choice = _choice(response)
        reason = choice.get("finish_reason") if choice else None
        if choice is None or reason not in ("stop", "length", "content_filter"):
            ended = self._server.clean(repr(reason))
            raise ServerGoneError(f"--server {self._settings.url} ended an answer by {ended} in place of an end")
        if reason == "content_filter":
            return Reply.refusal("the server's content filter refused the prompt or its answer")
        stopped = reason == "stop"
        token_ids = choice.get("token_ids")
        if token_ids is None:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else None
            if not isinstance(text, str | None):
                return Reply.refusal(f"the server's answer is no text but {self._server.clean(shown(text))}")
            reason = FinishReason.STOP if stopped else FinishReason.LENGTH
            return Reply(self._server.without_key(text or ""), (), reason, 0.0)
        if not _are_token_ids(token_ids):
            return Reply.refusal(f"the server's answer has no token ids but {self._server.clean(shown(token_ids))}")
        if len(token_ids) > decoding.max_new_tokens:
            return Reply.refusal(
                f"the server answered with {len(token_ids):,} tokens, asked for {decoding.max_new_tokens:,} at most"
            )
        found = finished(self._prompter.tokenizer, token_ids, self._followed.ends, decoding.stop)
        return Reply(found.text, found.token_ids, FinishReason.STOP if stopped else found.finish_reason, 0.0)


def check_server(server: ServerSettings, prompter: Prompter, decoding: Decoding, its: Followed, model: str) -> None:
    """See before any work that the server is there, and that it is what the artifact needs.

    A prompt about an image of one row is posed, and one whose row is too wide, which only our plugin refuses in its
    own words.

    Args:
        server: how it is reached.
        prompter: of the checkpoint.
        decoding: of the job.
        its: generation settings of the checkpoint.
        model: the checkpoint, as the user named it.

    Raises:
        UserError: it is not there or has no plugin, serves another model, or poses prompts as other tokens.
    """
    chat, engine = ChatServer(server, _PROBE_PAUSES_SEC), OpenAIEngine(prompter, server, its)
    try:
        names = chat.models()
        if server.model not in names:
            served = chat.clean(", ".join(names)) if names else "none"
            raise UserError(
                f"--server {server.url} has no model {server.model}, it serves {served}; start one "
                f"for this artifact (examples/serve), or name with --served-model the one that is {model}"
            )
        question = Question("x", _image(prompter.width), "")
        short = Decoding(1, system=decoding.system)
        too_wide = engine.request(question, short, _embeds({"image_embeds": torch.zeros(1, prompter.width + 1)}))
        _check_plugin(chat, too_wide, prompter.width, server)
        response = chat.chat(engine.request(question, short, _embeds(prompter.image_embeds(question.image))))
        difference = _difference(prompt_ids(prompter, question, short), response, server)
    except RequestRefusedError as error:
        raise UserError(_not_ours(server, error)) from error
    except ServerGoneError as error:
        raise UserError(f"{error}; start the server, or correct the address") from error
    finally:
        chat.close()
    if difference:
        raise UserError(
            f"--server {server.url} poses prompts as other tokens than --model {model}: {difference}; start it with "
            "the checkpoint's own tokenizer and chat template (examples/serve)"
        )


def _check_plugin(chat: ChatServer, too_wide: dict[str, Any], width: int, server: ServerSettings) -> None:
    """Refuse a server that has not our plugin's words for a row that is too wide, or has a model of another width."""
    said = "it takes a row that is too wide"
    try:
        chat.chat(too_wide)
    except RequestRefusedError as error:
        if error.status in (*_NO_KEY, *_NO_SUCH) or 300 <= error.status < 400:
            raise
        said = error.said
    if f"this model's have {width}" in said:
        return
    if "this model's have" in said:
        raise UserError(f"--server {server.url} serves another model as {server.model}: {said}")
    raise UserError(
        f"--server {server.url} answers without the plugin zoo-prune-vllm, so it would not place kept tokens where "
        f"they belong ({said}); start it as examples/serve does"
    )


def _not_ours(server: ServerSettings, error: RequestRefusedError) -> str:
    """What a refusal means that is not about one prompt."""
    status = f"--server {server.url}: status {error.status}, {error.said}"
    if error.status in _NO_KEY:
        return f"{status}; put the key that it asks for into OPENAI_API_KEY"
    if 300 <= error.status < 400:
        return f"{status}; give the address where it is, up to /v1"
    if error.status in _NO_SUCH:
        return f"{status}; is this its address up to /v1, and does it serve {server.model}?"
    return f"{status}; it does not take kept rows of images, start it as examples/serve does"


def _image(width: int) -> KeptImage:
    """An image of one kept token."""
    selection = StoredSelection(
        image_id="", num_tokens=1, num_kept=1, num_structure=0, grid={"rows": 1, "cols": 1, "tiles": 1}, segments=[],
        structure=[], ranking=[0], gain=[1.0],
    )  # fmt: skip
    return KeptImage("", selection, torch.zeros(1, dtype=torch.int64), torch.zeros(1, width), {})


def _embeds(tensors: dict[str, Tensor]) -> str | dict[str, str]:
    """An image as a chat request brings it: each tensor as the base64 of what torch saves, as vLLM reads it."""
    encoded = {}
    for name, tensor in tensors.items():
        stream = io.BytesIO()
        torch.save(tensor.cpu().clone(), stream)  # a part of a tensor would be saved with the whole
        encoded[name] = base64.b64encode(stream.getvalue()).decode()
    return encoded["image_embeds"] if len(encoded) == 1 else encoded


def _difference(ids: Sequence[int], response: dict[str, Any], server: ServerSettings) -> str | None:
    """Where the token ids of a prompt are not those that the server tells; None: they are the same, or trusted.

    Raises:
        UserError: it does not tell, and is not trusted.
    """
    told = response.get("prompt_token_ids")
    if told is None:
        if server.trust_template:
            return None
        raise UserError(
            f"--server {server.url} does not say which tokens it makes of a prompt (return_token_ids), so they can't "
            "be compared with those of the checkpoint; give --trust-server-template if its chat template is known to "
            "be the checkpoint's"
        )
    if not _are_token_ids(told):
        return f"what it says they are, {shown(told)}, are no token ids"
    if list(told) == list(ids):
        return None
    if list(told) == list(ids[1:]):
        return f"it leaves out the first, {ids[0]}"
    place = next((n for n, pair in enumerate(zip(ids, told, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"it makes {len(told)}, expected {len(ids)}"
    return f"token {place} is {told[place]}, expected {ids[place]}"


def _are_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < _MOST_TOKENS for one in value)


def _choice(response: dict[str, Any]) -> dict[str, Any] | None:
    """The first answer of a response."""
    choices = response.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _timed(reply: Reply, seconds: float) -> Reply:
    return reply if reply.text is None else replace(reply, seconds=seconds)
