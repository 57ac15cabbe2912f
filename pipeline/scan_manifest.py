"""Scanning a JSONL manifest: one sample a line, each naming an image file, which is hashed."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from pipeline.input_file import InputReadError, open_input
from pipeline.sample import ScanUnit, parse_record, read_prompts, sample_row


def scan_manifest(unit: ScanUnit) -> Iterator[dict[str, Any]]:
    """Lines that begin in [begin, end): a line that straddles the border belongs to the unit it begins in."""
    name = os.path.basename(unit.path)
    folder = os.path.dirname(unit.path)
    with open_input(unit.path) as stream:
        if unit.begin:
            stream.seek(unit.begin - 1)
            stream.readline()
        while (offset := stream.tell()) < unit.end:
            line = stream.readline()
            if line.strip():
                yield _manifest_row(unit, name, folder, offset, line)


def _manifest_row(unit: ScanUnit, name: str, folder: str, offset: int, line: bytes) -> dict[str, Any]:
    source = f"{name}@{offset}"
    try:
        record = parse_record(line)
        image = record.get("image")
        if not isinstance(image, str) or not image:
            raise ValueError(f"'image' is {image!r}, expected the path of an image file")
        source = f"{name}/{image}"
        prompts = read_prompts(record, f"{name}@{offset}")
    except ValueError as error:
        return sample_row(unit, offset, source, reason="bad_record", message=f"{unit.path}, byte {offset}: {error}")
    path = os.path.join(folder, image)
    try:
        with open_input(path) as stream:
            image_id = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
    except InputReadError as error:
        failure = {"reason": error.reason, "message": str(error)}
        return sample_row(unit, offset, source, path=path, prompts=prompts, **failure)
    return sample_row(unit, offset, source, path=path, size=size, image_id=image_id, prompts=prompts)
