"""Scanning a WebDataset tar: members grouped into samples, images hashed where they lie, nothing unpacked to disk.

A compressed tar is unpacked as it is read. Its offsets count what it unpacks to, and with each image goes where in the
file reading can begin for it.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from pipeline.corpus.fetch import Inspected, inspect
from pipeline.corpus.packed import Unpacked
from pipeline.corpus.reading import Reading
from pipeline.corpus.sample import (
    MAX_JSON_BYTES,
    MAX_KEYS,
    ScanUnit,
    keys_instead,
    named_in,
    parse_record,
    read_prompts,
)
from pipeline.errors import UserError
from pipeline.storage.input_file import InputReadError, open_input
from schemas.samples import Sample

IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", "ppm"))
PICKLE_EXTENSIONS = frozenset(("pkl", "pickle", "pyd", "pth", "pt"))
CAPTION_EXTENSION = "txt"
MAX_CAPTION_BYTES = 1 << 20
MAX_PACKED_BYTES = 1 << 30  # of one image in a compressed tar, which is held in memory while it is hashed
_MALFORMED = (tarfile.TarError, ValueError, OverflowError)  # the last two from odd numbers in a header


@dataclass
class _Members:
    """Members of one WebDataset sample, as far as read."""

    key: str
    offset: int
    prefix: str  # of its source and its prompts' ids: the input's name, with the byte offset where the key came before
    image: tarfile.TarInfo | None = None
    found: Inspected | None = None  # what the image's bytes tell
    within: str | None = None  # of its place
    caption: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)  # extensions of members that are neither image nor record
    dotted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # records whose key has a dot, with the rest
    problem: tuple[str, str] | None = None
    unread: InputReadError | None = None  # why the storage did not give its image


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


def scan_tar(unit: ScanUnit, reading: Reading) -> Iterator[Sample]:
    """A row for every sample, and a last one for bytes of the file that hold no sample anybody can read.

    Raises:
        UserError: not a tar from its first byte on.
        InputReadError: the storage does not give a header or a record. An image it does not give is that sample's row.
    """
    with open_input(unit.path) as stream:
        yield from _samples(unit, reading, stream, _opened(unit, stream))


def _scan_packed_tar(form: str, unit: ScanUnit, reading: Reading) -> Iterator[Sample]:
    with Unpacked(unit.path, form) as stream:
        yield from _samples(unit, reading, stream, _opened(unit, stream))


scan_gzip_tar = partial(_scan_packed_tar, "gzip")
scan_zstd_tar = partial(_scan_packed_tar, "zstd")


def _opened(unit: ScanUnit, stream: Any) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r:")  # holds no more than the stream does
    except _MALFORMED as error:
        raise UserError(f"--corpus: {unit.path} can't be read as a tar ({error}); check or remove it") from error


def _samples(
    unit: ScanUnit, reading: Reading, stream: BinaryIO | Unpacked, archive: tarfile.TarFile
) -> Iterator[Sample]:
    name = unit.name
    done: set[str] = set()
    current: _Members | None = None
    problem: tuple[int, str, str] | None = None
    behind: list[Sample] = []  # rows to come after the current sample
    end = None if isinstance(stream, Unpacked) else unit.end  # what a compressed tar unpacks to is not known
    at = 0  # where the next header begins
    while True:
        try:
            member = archive.next()
        except _MALFORMED as error:
            problem = _cut(unit, at, end, str(error))
            break
        if member is None:
            try:
                problem = _behind_the_end(unit, stream, at, end)
            except _MALFORMED as error:
                problem = _cut(unit, at, end, str(error))
            break
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise; a large tar must not cost memory
        member.name, member.linkname = _printable(member.name), _printable(member.linkname)
        sized = member.isreg() and not member.issparse()
        too_long = sized and (member.size < 0 or (end is not None and member.size > end - member.offset_data))
        if archive.offset <= at or too_long:
            problem = _cut(unit, at, end, f"member {member.name!r} claims {member.size} bytes")
            break
        at = archive.offset
        if member.isdir():
            continue
        key, extension = _split_name(member.name)
        unsafe = _unsafe(member, extension)
        if unsafe is not None:
            source = f"{name}@{member.offset}/{member.name}"
            row = Sample(input=unit.input, sample=member.offset, source=source, reason="unsafe_member", message=unsafe)
            if current is None:
                yield row
            else:
                behind.append(row)  # the sample that is being read began before it
            continue
        if current is not None and key != current.key:
            yield _sample_of(unit, reading, current)
            yield from behind
            behind = []
            done.add(current.key)
            current = None
        if current is None:
            current = _Members(key, member.offset, name)
            if key in done:
                current.prefix = f"{name}@{member.offset}"
                message = f"key {key!r} appears again after other samples; members of a sample must be contiguous"
                current.problem = ("duplicate_key", message)
        try:
            _take_member(stream, archive, member, extension, current)
        except _MALFORMED as error:
            problem = _cut(unit, member.offset, end, str(error))
            if current.offset == member.offset:  # nothing of the sample came before
                current = None
            break
    if current is not None:
        yield _sample_of(unit, reading, current)
    yield from behind
    if problem is not None:
        begin, reason, message = problem
        yield Sample(
            input=unit.input,
            sample=begin,
            source=f"{name}@{begin}",
            path=unit.path,
            offset=begin,
            size=None if end is None else max(0, end - begin),
            reason=reason,
            message=message,
        )


def _cut(unit: ScanUnit, at: int, end: int | None, why: str) -> tuple[int, str, str]:
    """Where reading ended, the reason, the message: the file breaks off where a member or the end mark should be."""
    if end is None:
        message = (
            f"{unit.path} breaks off at byte {at} of what it unpacks to ({why}); what follows was not read, "
            "the samples it held are lost"
        )
        return at, "truncated_tar", message
    if at < end:
        message = (
            f"{unit.path} breaks off at byte {at} of {end} ({why}); {end - at} bytes were not read, "
            "the samples they held are lost"
        )
        return at, "truncated_tar", message
    message = (
        f"{unit.path} ends at byte {end} without the mark of a tar's end: it was cut behind a member, "
        "or its writer left the mark out; the samples before are kept, whether more followed can't be told"
    )
    return end, "truncated_tar", message


def _behind_the_end(
    unit: ScanUnit, stream: BinaryIO | Unpacked, at: int, end: int | None
) -> tuple[int, str, str] | None:
    """What is wrong with a tar behind its last member: no end mark, no header, or more bytes behind the end mark.

    One block of zeros is end mark enough, though two should stand there: who wrote it had written every member.
    """
    stream.seek(at)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        return _cut(unit, at, end, "no header begins there")
    place = at + len(block)
    while chunk := stream.read(1 << 20):
        data = chunk.lstrip(b"\0")
        if data:
            place += len(chunk) - len(data)
            place -= place % tarfile.BLOCKSIZE
            many = "the bytes" if end is None else f"{end - place} bytes"
            message = (
                f"{unit.path} goes on behind its end mark{_other_tar(stream, place)}: {many} "
                f"from byte {place} on were not read, because readers of tars stop at the end mark"
            )
            return place, "trailing_data", message
        place += len(chunk)
    return None


def _other_tar(stream: BinaryIO | Unpacked, place: int) -> str:
    stream.seek(place)
    try:
        tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except _MALFORMED:
        return ""
    return " with another tar (two were joined by `cat`; give each a file of its own)"


def _take_member(
    source: BinaryIO | Unpacked, archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str, members: _Members
) -> None:
    last = extension.rpartition(".")[2]
    if extension in IMAGE_EXTENSIONS:
        if members.image is not None:
            members.problem = ("duplicate_key", f"key {members.key!r} has two images; give each a key of its own")
            return
        stream = archive.extractfile(member)
        assert stream is not None, "regular members have a stream"
        if isinstance(source, Unpacked):
            _take_packed(source, member, members)
            return
        members.image = member
        try:
            members.found = inspect(stream)  # type: ignore[arg-type]
        except InputReadError as error:
            members.unread = error
    elif last == "json" and extension == "json":
        if member.size > MAX_JSON_BYTES:
            members.problem = (
                "bad_record",
                f"{member.name!r} has {member.size} bytes; at most {MAX_JSON_BYTES} are read",
            )
            return
        stream = archive.extractfile(member)
        assert stream is not None, "regular members have a stream"
        data = stream.read()
        try:
            members.record = parse_record(data)
        except ValueError as error:
            members.problem = ("bad_record", f"{member.name!r}: {error}")
    elif extension == CAPTION_EXTENSION:
        members.others.append(f".{extension}")
        if member.size <= MAX_CAPTION_BYTES:
            stream = archive.extractfile(member)
            assert stream is not None, "regular members have a stream"
            members.caption = stream.read().decode("utf-8", "replace").strip()
    else:
        if len(members.others) < MAX_KEYS:
            members.others.append(f".{extension}")
        if last == "json" and members.image is None and member.size <= MAX_JSON_BYTES:
            _take_dotted(archive, member, extension, members)


def _take_packed(source: Unpacked, member: tarfile.TarInfo, members: _Members) -> None:
    """Take an image of a compressed tar: in one go, since going back in it is dear.

    Its place begins where reading can begin for the member's data.
    """
    if member.size > MAX_PACKED_BYTES:
        message = f"{member.name!r} has {member.size} bytes; of a compressed tar at most {MAX_PACKED_BYTES} are read"
        members.problem = ("too_large", message)
        return
    source.seek(member.offset_data)
    data = source.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError(f"member {member.name!r} claims {member.size} bytes, {len(data)} are there")
    members.image, members.found = member, inspect(io.BytesIO(data))
    begin, base = source.restart_before(member.offset_data)
    members.within = f"{source.form}:{begin}:{base}"


def _take_dotted(archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str, members: _Members) -> None:
    """Keep a record that somebody put under a key with a dot: its prompts get rows, if the sample has no image."""
    stream = archive.extractfile(member)
    assert stream is not None, "regular members have a stream"
    data = stream.read()
    try:
        record = parse_record(data)
    except ValueError:  # it may be anything: no member that we know of has this name
        return
    if "prompts" in record:
        members.dotted.append((extension.removesuffix(".json"), record))


def _without_dot(name: str) -> str:
    """`a-b.jpg` of `a.b.jpg`."""
    stem, _, extension = name.rpartition(".")
    folder, slash, base = stem.rpartition("/")
    return f"{folder}{slash}{base.replace('.', '-')}.{extension}"


def _sample_of(unit: ScanUnit, reading: Reading, members: _Members) -> Sample:
    name = f"{members.prefix}/{members.key}"
    problem = members.problem
    if members.image is None and problem is None:
        message = f"sample {members.key!r} has no image member ({', '.join(sorted(IMAGE_EXTENSIONS))})"
        with_dot = [other for other in members.others if other.rpartition(".")[2] in IMAGE_EXTENSIONS]
        if with_dot:
            found = f"{members.key}{with_dot[0]}"
            message += f"; {found!r} is none, because a key ends at its first dot: write {_without_dot(found)!r}"
        problem = ("no_image", message)
    if members.unread is not None and problem is None:
        problem = (members.unread.reason, str(members.unread))
    sample = Sample(input=unit.input, sample=members.offset, source=name)
    record = members.record
    if members.caption and record.get("caption") is None:
        record = {**record, "caption": members.caption}
    sample.prompts = read_prompts(record, name, reading)
    sample.named = named_in(record, reading) if members.record else None
    if members.image is None:
        for rest, record in members.dotted:
            sample.prompts += read_prompts(record, f"{name}.{rest}", replace(reading, prompts=()))
    if not sample.prompts:
        sample.keys = keys_instead(members.record, members.others)
    if members.image is not None:
        sample.source = f"{members.prefix}/{members.image.name}"
        sample.path = unit.path
        sample.offset, sample.size = members.image.offset_data, members.image.size
        sample.within = members.within
    if members.found is not None:
        sample.image_id = members.found.image_id
        sample.width, sample.height = members.found.width, members.found.height
    if problem is not None:
        sample.reason, sample.message = problem
    return sample
