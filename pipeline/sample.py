"""One sample of the corpus as the scan writes it down: its row, and the prompts of its JSON record."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ScanUnit:
    """A piece of one input that one task scans: bytes [begin, end) of a manifest, or a whole tar."""

    input: int
    path: str
    kind: str
    begin: int
    end: int


def sample_row(unit: ScanUnit, sample: int, source: str, **columns: Any) -> dict[str, Any]:
    """A row of `schemas.tables.SCAN`; `sample` is the byte offset of the sample in its input."""
    row = dict.fromkeys(("path", "offset", "size", "image_id", "reason", "message"))
    return {"input": unit.input, "sample": sample, "source": source, **row, "prompts": [], **columns}


def read_prompts(record: dict[str, Any], sample_name: str) -> list[dict[str, Any]]:
    """The prompts of a sample's JSON record; a prompt that can't be used keeps its row with the reason as status.

    A prompt without `id` gets `<sample_name>#<number>`.
    """
    raw = record.get("prompts", [])
    if not isinstance(raw, list):
        raise ValueError(f"'prompts' is {type(raw).__name__}, expected a list")
    rows = []
    for number, item in enumerate(raw):
        if isinstance(item, str):
            item = {"prompt": item}
        if not isinstance(item, dict):
            raise ValueError(f"prompt {number} is {type(item).__name__}, expected an object with 'prompt'")
        text = item.get("prompt")
        references = item.get("references") or []
        if isinstance(references, str):
            references = [references]
        if not isinstance(references, list):
            raise ValueError(f"references of prompt {number} are {type(references).__name__}, expected a list")
        rows.append(
            {
                "prompt_id": str(item["id"]) if item.get("id") is not None else f"{sample_name}#{number}",
                "prompt": text if isinstance(text, str) else "",
                "references": [str(r) for r in references],
                "type": str(item["type"]) if item.get("type") is not None else None,
                "status": "ok" if isinstance(text, str) and text.strip() else "empty_prompt",
            }
        )
    return rows


def parse_record(text: bytes) -> dict[str, Any]:
    """The JSON object of a sample. Raises ValueError when it is none."""
    try:
        record = json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, expected a JSON object")
    if b"\\" in text:
        json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair is no text: UnicodeEncodeError
    return record
