"""Scanning a JSON array of records, as LLaVA's instruct data are: an element a sample, each naming an image file.

Where an element begins can only be told from the beginning of the file, so each unit walks through the file up to its
own end; images are hashed and prompts read of its own elements alone.
"""

from collections.abc import Iterator

from pipeline.corpus.pieces import DamagedAtError, elements
from pipeline.corpus.reading import Reading
from pipeline.corpus.record import damaged, sample_of_record
from pipeline.corpus.sample import ScanUnit, parse_record
from pipeline.storage.input_file import open_input
from schemas.samples import Sample


def scan_instruct(unit: ScanUnit, reading: Reading) -> Iterator[Sample]:
    """Elements that begin in [begin, end), and a last row where the file is no JSON from some byte on.

    Raises:
        InputReadError: the storage does not give the file. An image it does not give is that sample's row.
    """
    with open_input(unit.path) as stream:
        try:
            for element in elements(stream):
                if element.begin >= unit.end and not unit.last:
                    return
                if element.begin < unit.begin:
                    continue
                where = f"{unit.path}, byte {element.begin}"
                try:
                    record = parse_record(element.text)
                except ValueError as error:
                    name = f"{unit.name}@{element.begin}"
                    yield Sample(
                        input=unit.input,
                        sample=element.begin,
                        source=name,
                        reason="bad_record",
                        message=f"{where}: {error}",
                    )
                else:
                    yield sample_of_record(unit, element.begin, record, reading, where=where)
        except DamagedAtError as error:
            if unit.begin <= error.begin < unit.end or (unit.last and error.begin >= unit.end):
                yield damaged(unit, error.begin, str(error))
