"""Rows about samples of the corpus: what the scan finds, and what the index keeps of it."""

from dataclasses import dataclass

import pyarrow as pa

from schemas.columns import column, list_column


@dataclass(slots=True, kw_only=True)
class Message:
    """One turn of a conversation about an image."""

    role: str = column(pa.string())  # "system", "user" or "assistant"
    text: str = column(pa.string())


@dataclass(slots=True, kw_only=True)
class Prompt:
    """One prompt of a sample."""

    prompt_id: str = column(pa.string())
    prompt: str = column(pa.string(), default="")
    references: list[str] = column(pa.list_(pa.string()), default_factory=list)
    type: str | None = column(pa.string(), default=None)
    status: str = column(pa.string())  # "ok", or why this prompt can't be answered whatever its image
    message: str | None = column(pa.string(), default=None)  # null where it is "ok"
    # The conversation that ends with the prompt, earlier turns included; null: it is a conversation by itself.
    messages: list[Message] | None = list_column(Message, default=None)


@dataclass(slots=True, kw_only=True)
class _Found:
    """What one input sample is, and where its image lies.

    `source` is unique to the sample and never changes. It begins with the input file's path seen from the folder that
    holds the inputs which were indexed first. Then, of a tar: "/" and the image member (the key where there is none),
    as in `train/000.tar/000017.jpg`; "@" and the byte offset go before the "/" where the name alone may come twice (a
    key that is repeated, a member that was not read). Of a manifest: "@" and the byte offset of the line, since many
    lines may name one image, then "/" and the image as the line has it: `questions.jsonl@1234/images/17.jpg`.
    """

    input: int = column(pa.int32())  # number of the input file
    sample: int = column(pa.int64())  # byte offset of the sample in its input file
    source: str = column(pa.string())
    path: str | None = column(pa.string(), default=None)  # file that holds the image's encoded bytes
    offset: int | None = column(pa.int64(), default=None)  # null: the whole file
    size: int | None = column(pa.int64(), default=None)
    within: str | None = column(
        pa.string(), default=None
    )  # null: `offset` counts the bytes of `path`; else see `Place`
    image_id: str | None = column(pa.string(), default=None)  # null: the bytes could not be read
    reason: str | None = column(pa.string(), default=None)  # null unless the sample failed in the scan
    message: str | None = column(pa.string(), default=None)
    prompts: list[Prompt] = list_column(Prompt, default_factory=list)


@dataclass(slots=True, kw_only=True)
class Sample(_Found):
    """What the scan finds: the sample, its image's size, and what its record has of what was asked for."""

    width: int | None = column(pa.int32(), default=None)  # as the image's header says; null: it says nothing usable
    height: int | None = column(pa.int32(), default=None)
    keys: list[str] = column(pa.list_(pa.string()), default_factory=list)  # of its record; extensions of tar members
    # Those that the user names for prompts and that its record has; null: it has no record that they are read from.
    named: list[str] | None = column(pa.list_(pa.string()), default=None)


@dataclass(slots=True, kw_only=True)
class IndexRow(_Found):
    """The sample, and the decision where it goes. The index is sorted by (shard, input, sample)."""

    shard: int = column(pa.int32())
    slot: int | None = column(pa.int32(), default=None)  # place of the image in its shard; null: it owns no image
    image_shard: int | None = column(pa.int32(), default=None)  # shard that holds the image; null without image
