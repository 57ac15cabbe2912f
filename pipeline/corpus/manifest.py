"""Scanning a JSONL manifest: one sample a line, each naming an image file, which is hashed."""

from collections.abc import Iterator

from pipeline.corpus.fetch import hash_image
from pipeline.corpus.sample import ScanUnit, is_unicode, keys_instead, parse_record, read_prompts, shown
from pipeline.storage.input_file import InputReadError, open_input
from pipeline.storage.paths import is_url
from pipeline.storage.places import beside
from schemas.samples import Sample

MAX_PATH_CHARS = 4096


def scan_manifest(unit: ScanUnit) -> Iterator[Sample]:
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
                yield _sample_of(unit, offset, line)


def _sample_of(unit: ScanUnit, offset: int, line: bytes) -> Sample:
    name = f"{unit.name}@{offset}"
    sample = Sample(input=unit.input, sample=offset, source=name)
    try:
        record = parse_record(line)
    except ValueError as error:
        sample.reason, sample.message = "bad_record", f"{unit.path}, byte {offset}: {error}"
        return sample
    sample.prompts = read_prompts(record, name)
    if not sample.prompts:
        sample.keys = keys_instead(record)
    image = record.get("image")
    if isinstance(image, str) and is_url(image):
        sample.reason = "not_local"
        sample.message = f"'image' is {shown(image)}, a URL; only files are read: fetch it and name the file"
    elif not isinstance(image, str) or not 0 < len(image) <= MAX_PATH_CHARS or not is_unicode(image):
        sample.reason = "bad_record"
        sample.message = f"{unit.path}, byte {offset}: 'image' is {shown(image)}, expected the path of an image file"
    else:
        sample.source = f"{name}/{image}"
        sample.path = beside(unit.path, image)
        try:
            found = hash_image(sample.path)
            sample.image_id, sample.size = found.image_id, found.size
            sample.width, sample.height = found.width, found.height
        except InputReadError as error:
            sample.reason, sample.message = error.reason, str(error)
    return sample
