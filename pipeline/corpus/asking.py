"""Reading a file of prompts about images that are pruned already: a prompt a line of JSON, or a row of Parquet."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.corpus.cells import batches_of, opened
from pipeline.corpus.manifest import TOO_LONG, lines
from pipeline.corpus.packed import DamagedError
from pipeline.corpus.reading import Reading
from pipeline.corpus.sample import is_unicode, parse_record, printable, prompt_of, shown
from pipeline.corpus.turns import TurnError, asked_in, is_conversation
from pipeline.errors import UserError
from pipeline.storage.input_file import InputReadError, open_input
from schemas.asked import FileRow
from schemas.columns import table_of
from schemas.statuses import PromptStatus

IMAGE_KEYS = ("image_id", "source")  # one of them names the image
MESSAGES = "messages"
_PARQUET = b"PAR1"  # what such a file begins with
_PIECE_BYTES = 1 << 20
_ROWS = 4096  # that are held as objects


@dataclass(frozen=True)
class PromptsFile:
    """A file of prompts.

    Args:
        location: a path or an address.
        reading: the columns that the user names; `prompt`, `references`, `type` and `id` without it.
    """

    location: str
    reading: Reading = Reading()

    @property
    def columns(self) -> dict[str, str]:
        """The column of each part of a prompt."""
        named = self.reading
        return {
            "prompt": named.prompt_column or "prompt",
            "references": named.reference_column or "references",
            "type": named.type_column or "type",
            "id": named.id_column or "id",
        }

    def sha256(self) -> str:
        """Of its bytes, in lower-case hex.

        Raises:
            UserError: it can't be read.
        """
        digest = hashlib.sha256()
        with self._open() as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def tables(self) -> Iterator[pa.Table]:
        """Its rows, some thousand at a time, as tables of `schemas.asked.FileRow`. What can't be asked has its reason.

        Raises:
            UserError: it can't be read, holds no prompt, or has a key or column that is not read.
        """
        empty = True
        with self._open() as stream:
            rows = self._parquet(stream) if stream.read(len(_PARQUET)) == _PARQUET else self._jsonl(stream)
            while some := list(islice(rows, _ROWS)):
                empty = False
                yield table_of(FileRow, some)
        if empty:
            raise UserError(f"--prompts {self.location} holds no prompt; write a prompt a line, as in {_FORM}")

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            with open_input(self.location) as stream:
                yield stream
        except InputReadError as error:
            raise UserError(f"--prompts: {error}; name a file of prompts, JSONL or Parquet") from error

    def _jsonl(self, stream: BinaryIO) -> Iterator[FileRow]:
        stream.seek(0)
        for number, (_, line) in enumerate(lines(stream), start=1):
            if line is None:
                yield _bad(number, TOO_LONG)
                continue
            if not line.strip():
                continue
            if number == 1 and line.lstrip().startswith(b"["):
                raise UserError(
                    f"--prompts {self.location} begins like a JSON array; write an object a line, as in {_FORM}"
                )
            try:
                record = parse_record(line)
            except ValueError as error:
                yield _bad(number, f"the line is no JSON object: {error}")
                continue
            self._refuse_unknown(record, f"line {number} has the key")
            yield _row_of(number, record, self.columns)

    def _parquet(self, stream: BinaryIO) -> Iterator[FileRow]:
        try:
            file = opened(stream)
            names = file.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UserError(
                    f"--prompts {self.location} has the column {printable(twice)[:64]!r} twice; leave one out"
                )
            self._refuse_unknown(names, "it has the column")
            if not set(names) & {*IMAGE_KEYS}:
                raise UserError(
                    f"--prompts {self.location} has neither a column image_id nor a column source to say which image a "
                    "prompt is about"
                )
            first = 0
            for group in range(file.num_row_groups):
                for row, batch in batches_of(file, group, first, names):
                    for number, record in enumerate(batch.to_pylist(), start=row + 1):
                        yield _row_of(number, record, self.columns)
                first += file.metadata.row_group(group).num_rows
        except DamagedError as error:
            raise UserError(f"--prompts {self.location} can't be read as Parquet ({error}); write it anew") from error

    def _refuse_unknown(self, names: Collection[str], where: str) -> None:
        """Refuse what would be left unread in silence, as misspelt references would."""
        columns = self.columns
        known = {*IMAGE_KEYS, *columns.values(), MESSAGES}
        odd = next((name for name in names if name not in known), None)
        if odd is None:
            return
        wanted = f"{' or '.join(IMAGE_KEYS)}, {columns['prompt']} or {MESSAGES}"
        rest = ", ".join(columns[name] for name in ("references", "type", "id"))
        raise UserError(
            f"--prompts {self.location}: {where} {printable(odd)[:64]!r}, which is not read; a prompt has {wanted}, "
            f"{rest}: correct the name, leave it out, or say what it holds with --prompt-column, --reference-column, "
            "--type-column or --id-column"
        )


_FORM = '{"image_id": "...", "prompt": "what is this ?"}'


def _bad(position: int, message: str) -> FileRow:
    return FileRow(position=position, status=PromptStatus.BAD, message=message)


def _row_of(position: int, record: Mapping[str, Any], columns: Mapping[str, str]) -> FileRow:
    """A row. What is right about a wrong one stays, so that it can be found again."""
    item = {name: record[column] for name, column in columns.items() if record.get(column) is not None}
    problems: list[str] = []
    messages = None
    turns = record.get(MESSAGES)
    if turns is None and is_conversation(item.get("prompt")):
        turns = item.pop("prompt")
    if turns is not None:
        try:
            last = _last(turns)
            if item.setdefault("prompt", last.prompt) != last.prompt:
                problems.append(f"{columns['prompt']!r} is not what the user says last in {MESSAGES!r}; give one")
            item.setdefault("references", last.references)
            messages = last.messages
        except TurnError as error:
            problems.append(f"{MESSAGES!r}: {error}")
            item.setdefault("prompt", "-")  # so that not the lack of a text is told
    prompt = prompt_of("", item)
    row = FileRow(
        position=position,
        prompt_id=prompt.prompt_id or None,
        prompt=prompt.prompt,
        messages=messages,
        references=prompt.references,
        type=prompt.type,
        status=prompt.status,
        message=prompt.message,
    )
    _name_image(row, record, problems)
    if problems:
        told = [*problems, *([row.message] if row.message is not None else [])]
        row.status, row.message = PromptStatus.BAD, "; ".join(told)
    return row


def _last(turns: Any) -> Any:
    """What the user says last in a conversation."""
    if not isinstance(turns, list):
        raise TurnError(f"it is {shown(turns)}, expected a list of turns")
    last = None
    for last in asked_in(turns):  # noqa: B007
        pass
    if last is None:
        raise TurnError("no turn of it is said by the user")
    return last


def _name_image(row: FileRow, record: Mapping[str, Any], problems: list[str]) -> None:
    """Enter the image that a record names."""
    named = {key: record[key] for key in IMAGE_KEYS if record.get(key) is not None}
    for key, value in named.items():
        if not isinstance(value, str) or not value.strip() or not is_unicode(value):
            problems.append(f"{key!r} is {shown(value)}, expected a text")
            return
    if len(named) != 1:
        problems.append(
            "it names its image twice, by 'image_id' and by 'source'; one is enough"
            if named
            else "it names no image, by 'image_id' or by 'source'"
        )
    row.image_id = named["image_id"].lower() if "image_id" in named else None
    row.source = named.get("source")
