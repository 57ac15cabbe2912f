"""First pass over the corpus: find every sample, hash its image's bytes, note where they lie. Decodes nothing.

A unit of scanning is a whole tar or a byte range of a manifest. A sample is identified by its input number and the byte
offset of its first record, so units can be scanned in any order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.corpus.manifest import scan_manifest
from pipeline.corpus.resolve import CorpusInput, common_root, input_name
from pipeline.corpus.sample import ScanUnit
from pipeline.corpus.tar import scan_tar
from schemas.samples import Sample


@dataclass(frozen=True, slots=True)
class Reader:
    """How inputs of one kind are scanned."""

    scan: Callable[[ScanUnit], Iterator[Sample]]
    unit_bytes: int | None = None  # of an input that one task scans; None: all of it


READERS = {
    "tar": Reader(scan_tar),
    "manifest": Reader(scan_manifest, unit_bytes=4 << 20),
}  # by `CorpusInput.kind`


def scan_units(inputs: list[CorpusInput], first_input: int = 0, root: str | None = None) -> list[ScanUnit]:
    """Split the inputs into units: one a tar, one every 4 MB of a manifest.

    Args:
        inputs: input files, in corpus order.
        first_input: number of the first.
        root: folder that the inputs' names are relative to; None: the one that holds them all.
    """
    units = []
    root = common_root(inputs) if root is None else root
    for number, item in enumerate(inputs, start=first_input):
        name = input_name(item.path, root)
        step = READERS[item.kind].unit_bytes or item.size_bytes
        for begin in range(0, max(item.size_bytes, 1), max(step, 1)):
            end = min(begin + step, item.size_bytes)
            units.append(ScanUnit(number, name, item.path, item.kind, begin, end))
    return units


def scan(unit: ScanUnit, limit: int | None = None) -> Iterator[Sample]:
    """The samples that begin in the unit, in order; at most `limit` of them.

    Raises:
        UserError: the input is of another form than its name says.
        InputReadError: its storage does not give its bytes.
    """
    return islice(READERS[unit.kind].scan(unit), limit)
