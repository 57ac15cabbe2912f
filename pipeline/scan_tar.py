"""Scanning a WebDataset tar: members grouped into samples, images hashed where they lie, nothing unpacked."""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import UserError
from pipeline.sample import MAX_KEYS, ScanUnit, parse_record, record_columns, sample_row

IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", "ppm"))
PICKLE_EXTENSIONS = frozenset(("pkl", "pickle", "pyd", "pth", "pt"))
MAX_JSON_BYTES = 64 << 20


@dataclass
class _Sample:
    """Members of one WebDataset sample, as far as read."""

    key: str
    offset: int
    prefix: str  # of its source and its prompts' ids: the input's name, with the byte offset where the key came before
    image: tarfile.TarInfo | None = None
    image_id: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)  # extensions of members that are neither image nor record
    problem: tuple[str, str] | None = None


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


def scan_tar(unit: ScanUnit) -> Iterator[dict[str, Any]]:
    name = unit.name
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
                    source = f"{name}@{member.offset}/{member.name}"
                    yield sample_row(unit, member.offset, source, reason="unsafe_member", message=unsafe)
                    continue
                if not 0 <= member.size <= unit.end - member.offset_data:
                    raise tarfile.ReadError(f"member {member.name!r} claims {member.size} bytes")
                if current is not None and key != current.key:
                    yield _tar_row(unit, current)
                    done.add(current.key)
                    current = None
                if current is None:
                    current = _Sample(key, member.offset, name)
                    if key in done:
                        current.prefix = f"{name}@{member.offset}"
                        message = (
                            f"key {key!r} appears again after other samples; members of a sample must be contiguous"
                        )
                        current.problem = ("duplicate_key", message)
                _take_member(archive, member, extension, current)
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise; a large tar must not cost memory
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # the last two from odd numbers in a header
        where = current.offset if current else 0
        if current is not None:
            yield _tar_row(unit, current)
        elif not done:
            raise UserError(f"--corpus: {unit.path} can't be read as a tar ({error}); check or remove it") from error
        yield sample_row(
            unit,
            where + 1,
            f"{name}@{where}",
            reason="truncated_tar",
            message=f"{unit.path} breaks off after byte {where} ({error}); the samples behind are lost",
        )
        return
    if current is not None:
        yield _tar_row(unit, current)


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
            sample.record = parse_record(stream.read())
        except ValueError as error:
            sample.problem = ("bad_record", f"{member.name!r}: {error}")
    elif len(sample.others) < MAX_KEYS:
        sample.others.append(f".{extension}")


def _tar_row(unit: ScanUnit, sample: _Sample) -> dict[str, Any]:
    source = f"{sample.prefix}/{sample.key}"
    problem = sample.problem
    if sample.image is None and problem is None:
        problem = ("no_image", f"sample {sample.key!r} has no image member ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    columns = record_columns(sample.record, source, sample.others)
    if sample.image is not None:
        source = f"{sample.prefix}/{sample.image.name}"
        columns.update(
            path=unit.path, offset=sample.image.offset_data, size=sample.image.size, image_id=sample.image_id
        )
    if problem is not None:
        columns.update(reason=problem[0], message=problem[1])
    return sample_row(unit, sample.offset, source, **columns)
