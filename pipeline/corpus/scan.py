"""First pass over the corpus: find every sample, hash its image's bytes, note where they lie. Decodes nothing.

A unit of scanning is a whole tar or a byte range of a manifest. Rows follow `schemas.tables.SCAN`; a sample is
identified by its input number and the byte offset of its first record, so units can be scanned in any order.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.corpus.manifest import scan_manifest
from pipeline.corpus.resolve import CorpusInput, common_root, input_name
from pipeline.corpus.sample import ScanUnit
from pipeline.corpus.tar import scan_tar

MANIFEST_CHUNK_BYTES = 4 << 20


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
        step = item.size_bytes if item.kind == "tar" else MANIFEST_CHUNK_BYTES
        for begin in range(0, max(item.size_bytes, 1), max(step, 1)):
            end = min(begin + step, item.size_bytes)
            units.append(ScanUnit(number, name, item.path, item.kind, begin, end))
    return units


def scan(unit: ScanUnit, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Rows of `schemas.tables.SCAN`, one a sample that begins in the unit, in order; at most `limit` of them.

    Raises:
        UserError: the input itself can't be read (not a tar, vanished).
    """
    rows = scan_tar(unit) if unit.kind == "tar" else scan_manifest(unit)
    for count, row in enumerate(rows):
        if limit is not None and count >= limit:
            return
        yield row
