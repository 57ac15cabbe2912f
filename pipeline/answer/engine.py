"""What answers prompts about pruned images. Implementations stand beside this file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.families.base import KeptImage, Posed
from schemas.answers import FinishReason


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt about one image."""

    prompt: Posed  # the user's words, or the conversation that they end; without chat template
    image: KeptImage  # at the budget that the model is to see


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
    """

    def answer(self, questions: Sequence[Question], *, max_new_tokens: int) -> list[Reply]:
        """Greedy replies to questions, in their order, each at most `max_new_tokens` long.

        A prompt that the model can't take is refused in its own reply and costs the other questions nothing.
        """
        ...
