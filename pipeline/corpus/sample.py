"""The JSON record of a sample: its prompts, and what it has in place of them."""

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from schemas.samples import Prompt
from schemas.statuses import PromptStatus

T = TypeVar("T")

MAX_KEYS = 32  # of a sample without prompts that are noted
MAX_KEY_CHARS = 64
PROMPTS_FORM = '"prompts": [{"prompt": "what is this ?"}]'
MANIFEST_FORM = f'{{"image": "photo.jpg", {PROMPTS_FORM}}}'


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


def read_prompts(record: dict[str, Any], sample_name: str) -> list[Prompt]:
    """The prompts of a sample's JSON record; a prompt that can't be used keeps its row with the reason as status.

    Args:
        record: JSON object of the sample.
        sample_name: a prompt without `id` gets `<sample_name>#<number>`.
    """
    raw = record.get("prompts")
    if raw is None:
        return []
    if not isinstance(raw, list):
        message = f"'prompts' is {shown(raw)}, expected a list: {PROMPTS_FORM}"
        return [Prompt(prompt_id=f"{sample_name}#0", status=PromptStatus.BAD, message=message)]
    prompts = [_prompt(f"{sample_name}#{number}", item) for number, item in enumerate(raw)]
    beside = record.get("prompt")
    if isinstance(beside, str) and beside.strip():
        message = f"'prompt' {shown(beside)} stands beside 'prompts' and was not read; put it into their list"
        prompts.append(Prompt(prompt_id=f"{sample_name}#{len(raw)}", status=PromptStatus.BAD, message=message))
    return prompts


def _prompt(own_id: str, item: Any) -> Prompt:
    """One prompt. What is right about a wrong one stays in its row, so that it can be found again."""
    prompt = Prompt(prompt_id=own_id, status=PromptStatus.OK)
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, dict):
        prompt.status = PromptStatus.BAD
        prompt.message = f"the prompt is {shown(item)}, expected a text or an object"
        return prompt
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
        found = f"is {shown(item['prompt'])}" if "prompt" in item else f"is not among its keys {shown(list(item))}"
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
