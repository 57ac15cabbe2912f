"""First pass over the corpus: find every sample, hash its image's bytes, note where they lie. Decodes nothing.

A unit of scanning is a whole tar or a byte range of a manifest. Rows follow `schemas.tables.SCAN`; a sample is
identified by its input number and the byte offset of its first record, so units can be scanned in any order.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline.corpus import CorpusInput
from pipeline.errors import UserError

IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", "ppm"))
PICKLE_EXTENSIONS = frozenset(("pkl", "pickle", "pyd", "pth", "pt"))
MANIFEST_CHUNK_BYTES = 4 << 20
MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class ScanUnit:
    """A piece of one input that one task scans: bytes [begin, end) of a manifest, or a whole tar."""

    input: int
    path: str
    kind: str
    begin: int
    end: int


@dataclass
class _Sample:
    """Members of one WebDataset sample, as far as read."""

    key: str
    offset: int
    image: tarfile.TarInfo | None = None
    image_id: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


def scan_units(inputs: list[CorpusInput], first_input: int = 0) -> list[ScanUnit]:
    """Split the inputs into units: one a tar, one every 4 MB of a manifest."""
    units = []
    for number, item in enumerate(inputs, start=first_input):
        step = item.size_bytes if item.kind == "tar" else MANIFEST_CHUNK_BYTES
        for begin in range(0, max(item.size_bytes, 1), max(step, 1)):
            end = min(begin + step, item.size_bytes)
            units.append(ScanUnit(number, item.path, item.kind, begin, end))
    return units


def scan(unit: ScanUnit, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Rows of `schemas.tables.SCAN`, one a sample that begins in the unit, in order; at most `limit` of them.

    Raises:
        UserError: the input itself can't be read (not a tar, vanished).
    """
    rows = _scan_tar(unit) if unit.kind == "tar" else _scan_manifest(unit)
    for count, row in enumerate(rows):
        if limit is not None and count >= limit:
            return
        yield row


def _row(unit: ScanUnit, sample: int, source: str, **columns: Any) -> dict[str, Any]:
    row = dict.fromkeys(("path", "offset", "size", "image_id", "reason", "message"))
    return {"input": unit.input, "sample": sample, "source": source, **row, "prompts": [], **columns}


def _prompts(record: dict[str, Any], sample_name: str) -> list[dict[str, Any]]:
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


def _parse_record(text: bytes) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, expected a JSON object")
    if b"\\" in text:
        json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair is no text: UnicodeEncodeError
    return record


def _printable(name: str) -> str:
    """A member's name with the bytes that are no UTF-8 written as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension as WebDataset splits them: at the first dot of the base name."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _unsafe(member: tarfile.TarInfo, extension: str) -> str | None:
    """Why a member is never read, or None."""
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"member {member.name!r} has a path that leaves the archive; it was not read"
    if member.issym() or member.islnk():
        return f"member {member.name!r} is a link to {member.linkname!r}; it was not followed"
    if not member.isreg() or member.issparse():
        return f"member {member.name!r} is not a regular file; it was not read"
    if extension.rpartition(".")[2] in PICKLE_EXTENSIONS:
        return f"member {member.name!r} is a pickle; it was not opened"
    return None


def _scan_tar(unit: ScanUnit) -> Iterator[dict[str, Any]]:
    name = os.path.basename(unit.path)
    done: set[str] = set()
    current: _Sample | None = None
    try:
        with tarfile.open(unit.path, mode="r:") as archive:
            for member in archive:
                member.name, member.linkname = _printable(member.name), _printable(member.linkname)
                if member.isdir():
                    continue
                key, extension = _split_name(member.name)
                unsafe = _unsafe(member, extension)
                if unsafe is not None:
                    yield _row(unit, member.offset, f"{name}/{member.name}", reason="unsafe_member", message=unsafe)
                    continue
                if not 0 <= member.size <= unit.end - member.offset_data:
                    raise tarfile.ReadError(f"member {member.name!r} claims {member.size} bytes")
                if current is not None and key != current.key:
                    yield _tar_row(unit, name, current)
                    done.add(current.key)
                    current = None
                if current is None:
                    current = _Sample(key, member.offset)
                    if key in done:
                        message = (
                            f"key {key!r} appears again after other samples; members of a sample must be contiguous"
                        )
                        current.problem = ("duplicate_key", message)
                _take_member(archive, member, extension, current)
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise; a large tar must not cost memory
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # the last two from odd numbers in a header
        where = current.offset if current else 0
        if current is not None:
            yield _tar_row(unit, name, current)
        elif not done:
            raise UserError(f"--corpus: {unit.path} can't be read as a tar ({error}); check or remove it") from error
        yield _row(
            unit,
            where + 1,
            f"{name}@{where}",
            reason="truncated_tar",
            message=f"{unit.path} breaks off after byte {where} ({error}); the samples behind are lost",
        )
        return
    if current is not None:
        yield _tar_row(unit, name, current)


def _take_member(archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str, sample: _Sample) -> None:
    last = extension.rpartition(".")[2]
    if extension in IMAGE_EXTENSIONS:
        if sample.image is not None:
            sample.problem = ("duplicate_key", f"key {sample.key!r} has two images; give each a key of its own")
            return
        stream = archive.extractfile(member)
        assert stream is not None, "regular members have a stream"
        sample.image = member
        sample.image_id = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    elif last == "json" and extension == "json":
        if member.size > MAX_JSON_BYTES:
            sample.problem = (
                "bad_record",
                f"{member.name!r} has {member.size} bytes; at most {MAX_JSON_BYTES} are read",
            )
            return
        stream = archive.extractfile(member)
        assert stream is not None, "regular members have a stream"
        try:
            sample.record = _parse_record(stream.read())
        except ValueError as error:
            sample.problem = ("bad_record", f"{member.name!r}: {error}")


def _tar_row(unit: ScanUnit, name: str, sample: _Sample) -> dict[str, Any]:
    source = f"{name}/{sample.key}"
    problem = sample.problem
    prompts: list[dict[str, Any]] = []
    try:
        prompts = _prompts(sample.record, source)
    except ValueError as error:
        problem = problem or ("bad_record", f"{sample.key}.json: {error}")
    if sample.image is None and problem is None:
        problem = ("no_image", f"sample {sample.key!r} has no image member ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    columns: dict[str, Any] = {"prompts": prompts}
    if sample.image is not None:
        source = f"{name}/{sample.image.name}"
        columns.update(
            path=unit.path, offset=sample.image.offset_data, size=sample.image.size, image_id=sample.image_id
        )
    if problem is not None:
        columns.update(reason=problem[0], message=problem[1])
    return _row(unit, sample.offset, source, **columns)


def _scan_manifest(unit: ScanUnit) -> Iterator[dict[str, Any]]:
    """Lines that begin in [begin, end): a line that straddles the border belongs to the unit it begins in."""
    name = os.path.basename(unit.path)
    folder = os.path.dirname(unit.path)
    with open(unit.path, "rb") as stream:
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
        record = _parse_record(line)
        image = record.get("image")
        if not isinstance(image, str) or not image:
            raise ValueError(f"'image' is {image!r}, expected the path of an image file")
        source = f"{name}/{image}"
        prompts = _prompts(record, f"{name}@{offset}")
    except ValueError as error:
        return _row(unit, offset, source, reason="bad_record", message=f"{unit.path}, byte {offset}: {error}")
    path = os.path.join(folder, image)
    try:
        with open(path, "rb") as stream:
            image_id = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
    except (FileNotFoundError, NotADirectoryError):
        failure = {"reason": "missing_file", "message": f"{path} does not exist"}
        return _row(unit, offset, source, path=path, prompts=prompts, **failure)
    except (OSError, ValueError) as error:
        failure = {"reason": "read_error", "message": f"{path}: {error}"}
        return _row(unit, offset, source, path=path, prompts=prompts, **failure)
    return _row(unit, offset, source, path=path, size=size, image_id=image_id, prompts=prompts)
