"""First pass over the corpus: find every sample, hash its image's bytes, note where they lie. Decodes nothing.

A unit of scanning is a piece of one input: a range of its bytes, or all of it. A sample is identified by its input
number and its position there (a byte, a row), which is the same however the input is split, so units can be scanned in
any order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.corpus.arrow import scan_arrow
from pipeline.corpus.folder import scan_folder
from pipeline.corpus.instruct import scan_instruct
from pipeline.corpus.manifest import scan_manifest
from pipeline.corpus.parquet import scan_parquet
from pipeline.corpus.questions import scan_questions
from pipeline.corpus.reading import Reading
from pipeline.corpus.resolve import CorpusInput, common_root, input_name
from pipeline.corpus.sample import ScanUnit
from pipeline.corpus.tar import scan_gzip_tar, scan_tar, scan_zstd_tar
from schemas.samples import Sample


@dataclass(frozen=True, slots=True)
class Reader:
    """How inputs of one kind are scanned."""

    scan: Callable[[ScanUnit, Reading], Iterator[Sample]]
    unit: int | None = None  # bytes of an input, or images of a folder, that one task scans; None: all of it
    most_units: int | None = None  # where each of them has to walk through the input from its beginning


READERS = {
    "tar": Reader(scan_tar),
    "tar_gzip": Reader(scan_gzip_tar),
    "tar_zstd": Reader(scan_zstd_tar),
    "manifest": Reader(scan_manifest, unit=4 << 20),
    "parquet": Reader(scan_parquet, unit=64 << 20),
    "arrow": Reader(scan_arrow),
    "instruct": Reader(scan_instruct, unit=32 << 20, most_units=16),
    "questions": Reader(scan_questions, unit=32 << 20, most_units=16),
    "folder": Reader(scan_folder, unit=4096, most_units=32),
}  # by `CorpusInput.kind`


def scan_units(inputs: list[CorpusInput], first_input: int = 0, root: str | None = None) -> list[ScanUnit]:
    """Split the inputs into units, as their readers ask for it.

    Args:
        inputs: input files, in corpus order.
        first_input: number of the first.
        root: folder that the inputs' names are relative to; None: the one that holds them all.
    """
    units = []
    root = common_root(inputs) if root is None else root
    for number, item in enumerate(inputs, start=first_input):
        name = input_name(item.path, root)
        step = _step(READERS[item.kind], item.length)
        for begin in range(0, max(item.length, 1), step):
            end = min(begin + step, item.length)
            last = end == item.length
            units.append(ScanUnit(number, name, item.path, item.kind, begin, end, last, item.partner))
    return units


def _step(reader: Reader, length: int) -> int:
    least = -(-length // reader.most_units) if reader.most_units else 1
    return max(reader.unit or length, least, 1)


def scan(unit: ScanUnit, limit: int | None = None, reading: Reading = Reading()) -> Iterator[Sample]:  # noqa: B008
    """The samples that begin in the unit, in order; at most `limit` of them.

    Raises:
        UserError: the input is of another form than its name says.
        InputReadError: its storage does not give its bytes.
    """
    return islice(READERS[unit.kind].scan(unit, reading), limit)
