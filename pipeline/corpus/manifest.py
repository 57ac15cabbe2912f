"""Scanning a JSONL manifest: one sample a line, each naming an image file, which is hashed."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from pipeline.corpus.sample import ScanUnit, is_unicode, parse_record, record_columns, sample_row, shown
from pipeline.storage.input_file import InputReadError, open_input
from pipeline.storage.paths import is_url

MAX_PATH_CHARS = 4096


def scan_manifest(unit: ScanUnit) -> Iterator[dict[str, Any]]:
    """Lines that begin in [begin, end): a line that straddles the border belongs to the unit it begins in.

    Raises:
        InputReadError: the storage does not give the manifest. An image it does not give is that sample's row.
    """
    with open_input(unit.path) as stream:
        if unit.begin:
            stream.seek(unit.begin - 1)
            stream.readline()
        while (offset := stream.tell()) < unit.end:
            line = stream.readline()
            if line.strip():
                yield _manifest_row(unit, offset, line)


def _manifest_row(unit: ScanUnit, offset: int, line: bytes) -> dict[str, Any]:
    name = f"{unit.name}@{offset}"
    try:
        record = parse_record(line)
    except ValueError as error:
        return sample_row(unit, offset, name, reason="bad_record", message=f"{unit.path}, byte {offset}: {error}")
    columns = record_columns(record, name)
    image = record.get("image")
    if isinstance(image, str) and is_url(image):
        message = f"'image' is {shown(image)}, a URL; only files are read: fetch it and name the file"
        return sample_row(unit, offset, name, reason="not_local", message=message, **columns)
    if not isinstance(image, str) or not 0 < len(image) <= MAX_PATH_CHARS or not is_unicode(image):
        message = f"{unit.path}, byte {offset}: 'image' is {shown(image)}, expected the path of an image file"
        return sample_row(unit, offset, name, reason="bad_record", message=message, **columns)
    columns["path"] = path = os.path.join(os.path.dirname(unit.path), image)
    source = f"{name}/{image}"
    try:
        with open_input(path) as stream:
            columns["image_id"] = hashlib.file_digest(stream, "sha256").hexdigest()
            columns["size"] = stream.tell()
    except InputReadError as error:
        return sample_row(unit, offset, source, reason=error.reason, message=str(error), **columns)
    return sample_row(unit, offset, source, **columns)
