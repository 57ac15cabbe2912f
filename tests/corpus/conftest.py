"""What the tests of readers share: a corpus scanned, each image proven to lie where its row says."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.corpus.fetch import Fetcher, Place
from pipeline.corpus.reading import Reading
from pipeline.corpus.resolve import resolve_corpus
from pipeline.corpus.sample import ScanUnit
from pipeline.corpus.scan import scan, scan_units
from schemas.columns import rows_of, table_of
from schemas.samples import Sample

Scanned = Callable[..., list[Sample]]


def units_of(*patterns: Path | str) -> list[ScanUnit]:
    return scan_units(resolve_corpus([str(pattern) for pattern in patterns]))


def pieces(unit: ScanUnit, step: int) -> list[ScanUnit]:
    """The unit in pieces of so many bytes."""
    begins = range(unit.begin, unit.end, step)
    return [
        replace(unit, begin=begin, end=min(begin + step, unit.end), last=begin + step >= unit.end) for begin in begins
    ]


def scan_all(*patterns: Path | str, step: int | None = None, **reading: object) -> list[Sample]:
    """The samples of a corpus, as they come back from Arrow; scanned in pieces of so many bytes if that is said."""
    units = units_of(*patterns)
    units = [piece for unit in units for piece in (pieces(unit, step) if step else [unit])]
    found = [sample for unit in units for sample in scan(unit, reading=Reading(**reading))]  # type: ignore[arg-type]
    assert len({sample.source for sample in found}) == len(found), "sources are unique"
    assert len({(sample.input, sample.sample) for sample in found}) == len(found), "so are positions"
    with Fetcher() as fetcher:
        for sample in found:
            assert (sample.reason is None) == (sample.message is None)
            if sample.reason is None:
                place = Place(sample.path, sample.offset, sample.size, sample.within)
                assert len(fetcher.read(place, sample.image_id)) == sample.size
    return rows_of(Sample, table_of(Sample, found))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def jpegs(jpeg: Callable[[int], bytes]) -> list[bytes]:
    return [jpeg(seed) for seed in range(6)]
