"""Conversations about an image, as LLaVA's instruct data and chat formats have them, to prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.samples import Message

KEYS = ("conversations", "messages")
IMAGE = "<image>"  # what stands for the image in a turn
MAX_TURNS = 512  # of a conversation that are read
MAX_CHARS = 1 << 17  # of a prompt's conversation
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model"), "assistant"),
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing that the user says in a conversation."""

    prompt: str
    references: list[str]  # what is answered to it, if it is answered
    messages: list[Message] | None  # up to and including it; None where nothing comes before


class TurnError(ValueError):
    """A conversation is in a form that can't be read from some turn on."""


def is_conversation(value: object) -> bool:
    """Whether a value has the form of turns: a list whose first item says who speaks."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and ("from" in value[0] or "role" in value[0])
    )


def asked_in(turns: Sequence[Any]) -> Iterator[Asked]:
    """What the user says in a conversation, in order, each with the turns before it.

    Raises:
        TurnError: after what came before the turn that can't be read; its message says which.
    """
    said: list[Message] = []
    size = 0
    for number, turn in enumerate(turns):
        message = _message(number, turn)
        said.append(message)
        size += len(message.text)
        if message.role != "user":
            continue
        if size > MAX_CHARS or number >= MAX_TURNS:
            raise TurnError(
                f"turn {number} ends a conversation of {size:,} characters in {number + 1:,} turns; at most "
                f"{MAX_CHARS:,} in {MAX_TURNS:,} are read"
            )
        answer = _message(number + 1, turns[number + 1]) if number + 1 < len(turns) else None
        answered = [answer.text] if answer is not None and answer.role == "assistant" else []
        yield Asked(message.text, answered, list(said) if len(said) > 1 else None)


def _message(number: int, turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise TurnError(f"turn {number} is {type(turn).__name__}, expected an object with 'from' and 'value'")
    speaker = turn.get("from", turn.get("role"))
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise TurnError(f"turn {number} is said by {str(speaker)[:40]!r}, expected one of {', '.join(_ROLES)}")
    return Message(role=role, text=_text(number, turn.get("value", turn.get("content", turn.get("text")))))


def _text(number: int, content: Any) -> str:
    """What is said; of a list of parts the texts, with a placeholder where an image stands between them."""
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        text = "".join(_part(number, part) for part in content)
    else:
        raise TurnError(f"turn {number} says {type(content).__name__}, expected a text")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TurnError(f"turn {number} holds half of a surrogate pair and is no Unicode text")
    return text


def _part(number: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image", "image_url"):
        return IMAGE
    raise TurnError(f"turn {number} has a part of type {str(kind)[:40]!r}; texts and images are read")
