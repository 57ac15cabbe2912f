"""The rows of prompts that are asked about an artifact after it was pruned."""

from dataclasses import dataclass

import pyarrow as pa

from schemas.columns import column, list_column
from schemas.samples import Message
from schemas.selections import PromptRow


@dataclass(slots=True, kw_only=True)
class FileRow:
    """A row of a file of prompts, as it was read."""

    position: int = column(pa.int64())  # line or row of the file, counted from 1
    prompt_id: str | None = column(pa.string(), default=None)  # null: the row has none
    image_id: str | None = column(pa.string(), default=None)  # one of these two, unless the row is bad
    source: str | None = column(pa.string(), default=None)
    prompt: str = column(pa.string(), default="")
    messages: list[Message] | None = list_column(Message, default=None)
    references: list[str] = column(pa.list_(pa.string()), default_factory=list)
    type: str | None = column(pa.string(), default=None)
    status: str = column(pa.string())  # "ok", or why it can't be asked about any image
    message: str | None = column(pa.string(), default=None)  # null where it is "ok"


@dataclass(slots=True, kw_only=True)
class AskedRow(PromptRow):
    """prompts of an answer job that was given prompts of its own: one row per prompt, posed or not."""

    message: str | None = column(pa.string())  # why it can't be answered; null where the status is "ok"
