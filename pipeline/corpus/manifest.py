"""Scanning a JSONL manifest: one sample a line, each naming an image file, which is hashed."""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipeline.corpus.reading import Reading
from pipeline.corpus.record import sample_of_record
from pipeline.corpus.sample import MAX_JSON_BYTES, ScanUnit, parse_record
from pipeline.storage.input_file import open_input
from schemas.samples import Sample

TOO_LONG = f"the line has over {MAX_JSON_BYTES} bytes; no more are read"


def scan_manifest(unit: ScanUnit, reading: Reading) -> Iterator[Sample]:
    """Lines that begin in [begin, end): a line that straddles the border belongs to the unit it begins in.

    Raises:
        InputReadError: the storage does not give the manifest. An image it does not give is that sample's row.
    """
    with open_input(unit.path) as stream:
        if unit.begin:
            stream.seek(unit.begin - 1)
            _skip_line(stream.readline)
        for offset, line in lines(stream, unit.end):
            if line is None:
                yield _bad(unit, offset, TOO_LONG)
            elif line.strip():
                yield _sample_of(unit, offset, line, reading)


def lines(stream: BinaryIO, end: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """Every line that begins before `end`, with the byte at which it begins; None in place of one that is too long.

    Raises:
        InputReadError: the storage does not give the file.
    """
    while end is None or stream.tell() < end:
        offset = stream.tell()
        line = stream.readline(MAX_JSON_BYTES + 1)
        if not line:
            return
        if len(line) <= MAX_JSON_BYTES:
            yield offset, line
            continue
        if not line.endswith(b"\n"):
            _skip_line(stream.readline)
        yield offset, None


def _skip_line(readline: Callable[[int], bytes]) -> None:
    while (piece := readline(1 << 20)) and not piece.endswith(b"\n"):
        pass


def _sample_of(unit: ScanUnit, offset: int, line: bytes, reading: Reading) -> Sample:
    try:
        record = parse_record(line)
    except ValueError as error:
        return _bad(unit, offset, str(error))
    return sample_of_record(unit, offset, record, reading, where=f"{unit.path}, byte {offset}", anywhere=True)


def _bad(unit: ScanUnit, offset: int, why: str) -> Sample:
    return Sample(
        input=unit.input,
        sample=offset,
        source=f"{unit.name}@{offset}",
        reason="bad_record",
        message=f"{unit.path}, byte {offset}: {why}",
    )
