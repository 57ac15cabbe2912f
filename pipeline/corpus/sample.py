"""One sample of the corpus as the scan writes it down: its row, and the prompts of its JSON record."""

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.statuses import PromptStatus

MAX_KEYS = 32  # of a sample without prompts that are noted
MAX_KEY_CHARS = 64
PROMPTS_FORM = '"prompts": [{"prompt": "what is this ?"}]'


@dataclass(frozen=True)
class ScanUnit:
    """A piece of one input that one task scans: bytes [begin, end) of a manifest, or a whole tar."""

    input: int
    name: str  # of the input in sources and prompt ids, see `pipeline.corpus.resolve.input_name`
    path: str
    kind: str
    begin: int
    end: int


@dataclass(frozen=True)
class _HugeNumber:
    """Stands for a whole number of more digits than Python reads."""

    digits: int

    def __repr__(self) -> str:
        return f"a number of {self.digits:,} digits"


def sample_row(unit: ScanUnit, sample: int, source: str, **columns: Any) -> dict[str, Any]:
    """A row of `schemas.tables.SCAN`; `sample` is the byte offset of the sample in its input."""
    row = dict.fromkeys(("path", "offset", "size", "image_id", "reason", "message"))
    return {"input": unit.input, "sample": sample, "source": source, **row, "prompts": [], "keys": [], **columns}


def parse_record(text: bytes) -> dict[str, Any]:
    """The JSON object of a sample. Raises ValueError when it is none."""
    try:
        record = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, expected a JSON object")
    return record


def record_columns(record: dict[str, Any], sample_name: str, members: Sequence[str] = ()) -> dict[str, Any]:
    """The columns `prompts` and `keys` of a sample's row.

    Args:
        record: JSON object of the sample.
        sample_name: a prompt without `id` gets `<sample_name>#<number>`.
        members: extensions of the sample's other members in a tar, each with its dot.
    """
    prompts = read_prompts(record, sample_name)
    if prompts:
        return {"prompts": prompts}
    if record.get("prompts") == []:
        return {"keys": ["prompts"]}  # somebody knew the form and had nothing to ask
    names = [*members, *(name for name in record if name != "image")]
    return {"keys": [printable(name[:MAX_KEY_CHARS]) for name in names[:MAX_KEYS]]}


def read_prompts(record: dict[str, Any], sample_name: str) -> list[dict[str, Any]]:
    """The prompts of a sample's JSON record; a prompt that can't be used keeps its row with the reason as status."""
    raw = record.get("prompts")
    if raw is None:
        return []
    if not isinstance(raw, list):
        row = _prompt_row(f"{sample_name}#0", raw)
        row.update(status=PromptStatus.BAD, message=f"'prompts' is {shown(raw)}, expected a list: {PROMPTS_FORM}")
        return [row]
    return [_prompt_row(f"{sample_name}#{number}", item) for number, item in enumerate(raw)]


def _prompt_row(own_id: str, item: Any) -> dict[str, Any]:
    """One prompt. What is right about a wrong one stays in its row, so that it can be found again."""
    row: dict[str, Any] = {"prompt_id": own_id, "prompt": "", "references": [], "type": None}
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, dict):
        return {
            **row,
            "status": PromptStatus.BAD,
            "message": f"the prompt is {shown(item)}, expected a text or an object",
        }
    problems = []
    for column, key, read in _FIELDS:
        try:
            value = read(item.get(key))
        except ValueError as error:
            problems.append(f"{key!r} is {shown(item[key])}, {error}")
        else:
            row[column] = row[column] if value is None else value
    if problems:
        return {**row, "status": PromptStatus.BAD, "message": "; ".join(problems)}
    if not row["prompt"].strip():
        found = f"is {shown(item['prompt'])}" if "prompt" in item else f"is not among its keys {shown(list(item))}"
        return {**row, "status": PromptStatus.EMPTY, "message": f"'prompt' {found}, expected a text that is not blank"}
    return {**row, "status": PromptStatus.OK, "message": None}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("expected a text")
    if not is_unicode(value):
        raise ValueError("which holds half of a surrogate pair and is no Unicode text")
    return value


def _name(value: Any) -> str | None:
    """An id or a type: a text, or a whole number, which counts as its digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError("expected a text or a whole number")
    return _text(value) or None


def _texts(value: Any) -> list[str] | None:
    """References: a text or a list of them. A number is not taken for a text: is it 2, 2.0 or "two"?"""
    if value is None or value == "":
        return None
    texts = value if isinstance(value, list) else [value]
    for one in texts:
        if not isinstance(one, str):
            raise ValueError(f"expected texts; {shown(one)} is none")
        _text(one)
    return texts


_FIELDS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("prompt_id", "id", _name),
    ("prompt", "prompt", _text),
    ("references", "references", _texts),
    ("type", "type", _name),
)


def is_unicode(text: str) -> bool:
    """Whether `text` can be stored: half of a surrogate pair, which JSON lets through, can't."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(text: str) -> str:
    """`text` with what is no Unicode written as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value as a message shows it: cut short, however large or deep it is."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 8, 4
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def _whole_number(digits: str) -> int | _HugeNumber:
    try:
        return int(digits)
    except ValueError:  # Python reads no number of over 4,300 digits
        return _HugeNumber(len(digits.lstrip("-")))
