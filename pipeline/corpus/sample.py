"""The JSON record of a sample: its prompts, and what it has in place of them."""

import json
import reprlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.corpus.reading import CAPTION_TYPE, Reading
from pipeline.corpus.turns import KEYS, TurnError, asked_in, is_conversation
from schemas.samples import Prompt
from schemas.statuses import PromptStatus

T = TypeVar("T")

MAX_JSON_BYTES = 64 << 20  # of one record
MAX_KEYS = 32  # of a sample without prompts that are noted
MAX_KEY_CHARS = 64
PROMPTS_FORM = '"prompts": [{"prompt": "what is this ?"}]'
MANIFEST_FORM = f'{{"image": "photo.jpg", {PROMPTS_FORM}}}'


@dataclass(frozen=True)
class ScanUnit:
    """A piece of one input that one task scans: what begins in its bytes [begin, end), images of a folder by number."""

    input: int
    name: str  # of the input in sources and prompt ids, see `pipeline.corpus.resolve.input_name`
    path: str
    kind: str
    begin: int
    end: int
    last: bool = True  # of the input's pieces
    partner: str | None = None  # a second file that the input consists of


@dataclass(frozen=True)
class _HugeNumber:
    """Stands for a whole number of more digits than Python reads."""

    digits: int

    def __repr__(self) -> str:
        return f"a number of {self.digits:,} digits"


def parse_record(text: bytes) -> dict[str, Any]:
    """The JSON object of a sample. Raises ValueError when it is none."""
    try:
        record = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, expected a JSON object")
    return record


def keys_instead(record: dict[str, Any], members: Sequence[str] = ()) -> list[str]:
    """What a sample without prompts has in their place.

    Args:
        record: JSON object of the sample.
        members: extensions of the sample's other members in a tar, each with its dot.
    """
    if record.get("prompts") == []:
        return ["prompts"]  # somebody knew the form and had nothing to ask
    names = [*members, *(name for name in record if name != "image")]
    return [printable(name[:MAX_KEY_CHARS]) for name in names[:MAX_KEYS]]


def named_in(record: Container[str], reading: Reading) -> list[str]:
    """The columns that the user names for prompts and that a record has."""
    return [name for name in reading.named if name in record]


def read_prompts(record: dict[str, Any], sample_name: str, reading: Reading = Reading()) -> list[Prompt]:  # noqa: B008
    """The prompts of a sample's record; a prompt that can't be used keeps its row with the reason as status.

    Args:
        record: of the sample, as JSON has it.
        sample_name: a prompt without an id of its own gets `<sample_name>#<number>`.
        reading: where prompts stand, and what is asked beside them.
    """
    prompts = _own_prompts(record, sample_name, reading)
    for text in reading.prompts:
        item = {"prompt": text}
        if reading.prompt_column is None:
            item |= _beside(record, reading)
            if "id" in item:
                item["id"] = _numbered(item["id"], len(prompts))
        prompts.append(prompt_of(f"{sample_name}#{len(prompts)}", item))
    return prompts


def _own_prompts(record: dict[str, Any], name: str, reading: Reading) -> list[Prompt]:
    if reading.prompt_column is not None:
        return _column_prompts(record, name, reading)
    if record.get("prompts") is not None:
        return _listed_prompts(record, name)
    for key in KEYS:
        if record.get(key) is not None:
            return _turn_prompts(record[key], key, name, _beside(record, reading))
    if record.get("caption") is not None:
        beside = {"references": record["caption"], "type": CAPTION_TYPE, **_beside(record, reading)}
        if "id" in beside:
            beside["id"] = _numbered(beside["id"], 0)
        return [prompt_of(f"{name}#0", {"prompt": reading.caption_prompt, **beside})]
    return []


def _listed_prompts(record: dict[str, Any], name: str) -> list[Prompt]:
    """Prompts in our own form: a list of texts and objects under `prompts`."""
    raw = record["prompts"]
    if not isinstance(raw, list):
        return [_bad(f"{name}#0", f"'prompts' is {shown(raw)}, expected a list: {PROMPTS_FORM}")]
    prompts = [prompt_of(f"{name}#{number}", item) for number, item in enumerate(raw)]
    beside = record.get("prompt")
    if isinstance(beside, str) and beside.strip():
        message = f"'prompt' {shown(beside)} stands beside 'prompts' and was not read; put it into their list"
        prompts.append(_bad(f"{name}#{len(raw)}", message))
    return prompts


def _beside(record: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """What the columns for it say of a record's prompts, under the names that our own form has for it."""
    named = {"references": reading.reference_column, "type": reading.type_column, "id": reading.id_column}
    return {key: record[column] for key, column in named.items() if column is not None and column in record}


def _column_prompts(record: dict[str, Any], name: str, reading: Reading) -> list[Prompt]:
    """Prompts of a column: one text, a list of texts with one of everything else for each, or a conversation."""
    column = str(reading.prompt_column)
    value, beside = record.get(column), _beside(record, reading)
    if value is None:
        return []
    if is_conversation(value):
        return _turn_prompts(value, column, name, beside)
    if isinstance(value, str):
        return [prompt_of(f"{name}#0", {"prompt": value, **beside})]
    if not isinstance(value, list):
        return [_bad(f"{name}#0", f"{column!r} is {shown(value)}, expected a text, a list of texts or a conversation")]
    prompts = []
    for number, item in enumerate(value):
        own_id = f"{name}#{number}"
        odd = [key for key, many in beside.items() if not isinstance(many, list) or len(many) != len(value)]
        if isinstance(item, str) and odd:
            message = (
                f"{column!r} has {len(value)} prompts, its {odd[0]} is {shown(beside[odd[0]])}: one for each needed"
            )
            bad = _bad(own_id, message)
            bad.prompt = item if is_unicode(item) else ""
            prompts.append(bad)
        else:
            each = {key: many[number] for key, many in beside.items()} if isinstance(item, str) else {}
            prompts.append(prompt_of(own_id, {"prompt": item, **each} if isinstance(item, str) else item))
    return prompts


def _turn_prompts(turns: Any, key: str, name: str, beside: dict[str, Any]) -> list[Prompt]:
    """A prompt for each thing that the user says; its reference is what is answered to it."""
    if not isinstance(turns, list):
        return [_bad(f"{name}#0", f"{key!r} is {shown(turns)}, expected a list of turns")]
    prompts: list[Prompt] = []
    try:
        for number, asked in enumerate(asked_in(turns)):
            item = {**beside, "prompt": asked.prompt, "references": asked.references}
            if "id" in beside:
                item["id"] = _numbered(beside["id"], number)
            prompt = prompt_of(f"{name}#{number}", item)
            prompt.messages = asked.messages
            prompts.append(prompt)
    except TurnError as error:
        prompts.append(_bad(f"{name}#{len(prompts)}", f"{key!r}: {error}; what follows in it was not read"))
    return prompts


def _numbered(own: Any, number: int) -> Any:
    """The id of one of several prompts of a sample, from the id of the sample."""
    return f"{own}-{number}" if isinstance(own, str | int) and not isinstance(own, bool) else own


def _bad(own_id: str, message: str) -> Prompt:
    return Prompt(prompt_id=own_id, status=PromptStatus.BAD, message=message)


def prompt_of(own_id: str, item: Any) -> Prompt:
    """One prompt, of a text or an object. What is right about a wrong one stays, so that it can be found again."""
    prompt = Prompt(prompt_id=own_id, status=PromptStatus.OK)
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, dict):
        return _bad(own_id, f"the prompt is {shown(item)}, expected a text or an object")
    problems: list[str] = []

    def read(key: str, as_: Callable[[Any], T | None], otherwise: T) -> T:
        try:
            value = as_(item.get(key))
        except ValueError as error:
            problems.append(f"{key!r} is {shown(item[key])}, {error}")
            return otherwise
        return otherwise if value is None else value

    prompt.prompt_id = read("id", _name, own_id)
    prompt.prompt = read("prompt", _text, "")
    prompt.references = read("references", _texts, [])
    prompt.type = read("type", _name, None)
    if problems:
        prompt.status, prompt.message = PromptStatus.BAD, "; ".join(problems)
    elif not prompt.prompt.strip():
        keys = f"is not among its keys {shown(list(item))}" if item else "is not there"
        found = f"is {shown(item['prompt'])}" if "prompt" in item else keys
        prompt.status, prompt.message = PromptStatus.EMPTY, f"'prompt' {found}, expected a text that is not blank"
    return prompt


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
