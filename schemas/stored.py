"""What answering reads back of the pruned artifact's tables: some of their columns, each as the table has it."""

from dataclasses import dataclass
from typing import Any

from schemas.columns import column, list_column
from schemas.samples import Message
from schemas.tables import PROMPTS, SELECTIONS

_PROMPTS = {field.name: field.type for field in PROMPTS}
_SELECTIONS = {field.name: field.type for field in SELECTIONS}


@dataclass(slots=True, kw_only=True)
class StoredPrompt:
    """A prompt as it is posed. One that can't be posed may lack its image."""

    prompt_id: str = column(_PROMPTS["prompt_id"])
    image_id: str = column(_PROMPTS["image_id"])  # of a prompt that can be posed
    prompt: str = column(_PROMPTS["prompt"])
    messages: list[Message] | None = list_column(Message, default=None)
    references: list[str] | None = column(_PROMPTS["references"])
    type: str | None = column(_PROMPTS["type"])
    shard: int = column(_PROMPTS["shard"])
    image_shard: int = column(_PROMPTS["image_shard"])


@dataclass(slots=True, kw_only=True)
class StoredSelection:
    """What decides which tokens of an image the language model sees, and where it sees them."""

    image_id: str = column(_SELECTIONS["image_id"])
    num_tokens: int = column(_SELECTIONS["num_tokens"])
    num_kept: int = column(_SELECTIONS["num_kept"])
    num_structure: int = column(_SELECTIONS["num_structure"])
    grid: dict[str, int] = column(_SELECTIONS["grid"])
    segments: list[dict[str, Any]] = column(_SELECTIONS["segments"])
    structure: list[int] = column(_SELECTIONS["structure"])
    ranking: list[int] = column(_SELECTIONS["ranking"])
    gain: list[float] = column(_SELECTIONS["gain"])
