"""What answers prompts about pruned images. Implementations stand beside this file, see `engines`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import SecretStr

from pipeline.answer.decoding import Decoding
from pipeline.families.base import KeptImage, Posed
from schemas.answers import FinishReason


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt about one image."""

    prompt: Posed  # the user's words, or the conversation that they end; without chat template
    image: KeptImage  # at the budget that the model is to see
    prompt_id: str = ""  # what draws belong to, see `Decoding`


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question."""

    text: str | None  # None where the prompt was refused
    token_ids: Sequence[int]  # generated, end-of-sequence excluded
    finish_reason: FinishReason
    seconds: float  # the question's share of the time that generation took
    message: str | None = None  # why the prompt was refused

    @classmethod
    def refusal(cls, message: str) -> "Reply":
        """The reply to a prompt that can't be posed."""
        return cls(None, (), FinishReason.REFUSED, 0.0, message)


class Engine(Protocol):
    """A loaded language model that never sees pixels.

    It puts questions into batches as it sees fit; what it replies to one question does not depend on the others.
    Prompts become token ids by `posing.prompt_ids` and generated tokens become answers by `decoding.finished`, so that
    engines differ in nothing but who computes.
    """

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Reply]:
        """Replies to questions, in their order.

        A prompt that the model can't take is refused in its own reply and costs the other questions nothing.
        """
        ...


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The chat server that answers, and how a worker talks to it."""

    url: str  # up to and without the `/chat/completions` of its requests
    model: str  # as the server names it
    api_key: SecretStr | None
    concurrency: int  # requests that run at once
    timeout_sec: float  # of one request
    trust_template: bool  # prompts are posed by the server's template, also where it does not say as which tokens

    def shared_by(self, workers: int) -> "ServerSettings":
        """The same for one of so many workers, which have the requests that run at once between them."""
        return replace(self, concurrency=max(1, -(-self.concurrency // workers)))
