"""How answers are decoded, which is the same question to every engine, and what becomes of what one generated.

Greedy decoding takes the likeliest token. With a temperature tokens are drawn, and what is drawn belongs to the
question: its seed is made of `seed` and the prompt's id, so no batch, shard, worker or order of questions changes it.
"""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.answer.settings import AnswerSettings
from pipeline.errors import UserError
from pipeline.storage.input_file import InputReadError, open_input
from schemas.answers import FinishReason


@dataclass(frozen=True, slots=True)
class Decoding:
    """What is asked of an engine beside the questions."""

    max_new_tokens: int  # of an answer
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # the likeliest tokens that have this probability together are drawn from
    seed: int = 0  # of all draws
    stop: tuple[str, ...] = ()  # an answer ends before the first of them
    json_schema: str | None = None  # answers are JSON of this schema, itself written as JSON
    regex: str | None = None  # answers match it
    system: str | None = None  # what the system says before the conversation

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def is_structured(self) -> bool:
        """Whether answers have a form that the engine must keep to."""
        return self.json_schema is not None or self.regex is not None

    def seed_of(self, prompt_id: str) -> int:
        """The seed of one question, of 63 bits: for engines that draw by themselves."""
        return self._hashed(prompt_id, "") >> 1

    def draw(self, prompt_id: str, step: int) -> float:
        """The number in [0, 1) by which the token of a step, counted from 0, is drawn.

        It is the first 53 bits of the SHA-256 of seed, prompt id and step, and so the same with any version of any
        library.
        """
        return (self._hashed(prompt_id, str(step)) >> 11) / 2**53

    def _hashed(self, *parts: str) -> int:
        text = "\n".join([str(self.seed), *parts])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def decoding_of(settings: AnswerSettings) -> Decoding:
    """What the settings of an answer job say of it; the JSON schema is read from its file.

    Raises:
        UserError: the file holds no JSON schema, the regular expression is none, or both were given.
    """
    if settings.regex is not None:
        if settings.json_schema is not None:
            raise UserError("--json-schema and --regex: an answer has one form; give one of them")
        try:
            re.compile(settings.regex)
        except re.error as error:
            if not str(error).startswith("bad escape"):  # engines know some that Python does not
                raise UserError(f"--regex {settings.regex}: {error}; correct the expression") from error
    return Decoding(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        stop=settings.stop,
        json_schema=None if settings.json_schema is None else _schema(settings.json_schema),
        regex=settings.regex,
        system=settings.system,
    )


def _schema(location: str) -> str:
    """The JSON schema in a file, written in one way however the file is laid out."""
    try:
        with open_input(location) as stream:
            schema = json.loads(stream.read())
    except InputReadError as error:
        raise UserError(f"--json-schema: {error}; name a file that holds a JSON schema") from error
    except ValueError as error:
        raise UserError(f"--json-schema {location} is not JSON ({error}); correct the file") from error
    if not isinstance(schema, dict):
        raise UserError(f"--json-schema {location} holds no JSON object; name a file that holds a JSON schema")
    return json.dumps(schema, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Generated:
    """What an engine generated, cut where the answer ends."""

    text: str
    token_ids: Sequence[int]  # end-of-sequence excluded; the one that completed a stop string included
    finish_reason: FinishReason


def finished(tokenizer: Any, token_ids: Sequence[int], ends: Collection[int], stop: Sequence[str]) -> Generated:
    """The answer that generated tokens make, in every engine alike.

    It ends with the first token that ends answers, or with the token that completes the first stop string, whichever
    is earlier. The text ends before the stop string. An end that is no special token is part of the text, as it is
    where the model is used by itself.

    Args:
        tokenizer: of the checkpoint.
        token_ids: generated, whatever follows the end included.
        ends: token ids that end an answer.
        stop: strings that end an answer.
    """
    end = next((number for number, token in enumerate(token_ids) if token in ends), len(token_ids))
    text = _text(tokenizer, token_ids[: end + 1])
    if stopped_at(text, stop) is None:
        reason = FinishReason.STOP if end < len(token_ids) else FinishReason.LENGTH
        return Generated(text, list(token_ids[:end]), reason)
    for count in range(1, end + 2):
        text = _text(tokenizer, token_ids[:count])
        place = stopped_at(text, stop)
        if place is not None:
            return Generated(text[:place], list(token_ids[: min(count, end)]), FinishReason.STOP)
    raise AssertionError("the whole text holds a stop string")


def stopped_at(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string in the text begins; None: it holds none."""
    return min((place for one in stop if (place := text.find(one)) >= 0), default=None)


def _text(tokenizer: Any, token_ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    assert isinstance(text, str), "one sequence decodes to one text"
    return text
