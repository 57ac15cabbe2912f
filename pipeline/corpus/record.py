"""A sample out of a record that names its image by a path: a line of JSON, an element of an array, a row."""

from pathlib import PurePosixPath
from typing import Any

from pipeline.corpus.fetch import hash_image
from pipeline.corpus.reading import Reading
from pipeline.corpus.sample import ScanUnit, is_unicode, keys_instead, named_in, read_prompts, shown
from pipeline.storage.input_file import InputReadError
from pipeline.storage.paths import is_url
from pipeline.storage.places import beside
from schemas.samples import Sample

MAX_PATH_CHARS = 4096


def sample_of_record(
    unit: ScanUnit, position: int, record: dict[str, Any], reading: Reading, *, where: str, anywhere: bool = False
) -> Sample:
    """The sample of a record, its prompts read and its image hashed.

    Args:
        unit: of the input that holds the record.
        position: of the record in it.
        record: as JSON has it.
        reading: what the user says of the corpus.
        where: the record as a message calls it.
        anywhere: its image may lie outside of the folder of its input, where no `--image-root` is given.
    """
    name = f"{unit.name}@{position}"
    sample = Sample(input=unit.input, sample=position, source=name)
    sample.prompts, sample.named = read_prompts(record, name, reading), named_in(record, reading)
    if not sample.prompts:
        sample.keys = keys_instead(record)
    key = reading.image_key
    if key not in record:
        sample.reason = "bad_record"
        sample.message = f"{where}: it has no {key!r}, its keys are {shown(list(record))}; see --image-column"
        return sample
    image = record[key]
    only = image[0] if isinstance(image, list) and len(image) == 1 else image
    take_image(sample, unit, only, reading, where=where, anywhere=anywhere)
    return sample


def take_image(
    sample: Sample, unit: ScanUnit, image: Any, reading: Reading, *, where: str, anywhere: bool = False
) -> None:
    """Enter into a sample the image file that its record names, or why there is none."""
    key = reading.image_key
    if isinstance(image, str) and is_url(image):
        sample.reason = "not_local"
        sample.message = f"{key!r} is {shown(image)}, a URL; only files are read: fetch it and name the file"
    elif not isinstance(image, str) or not 0 < len(image) <= MAX_PATH_CHARS or not is_unicode(image):
        sample.reason = "bad_record"
        sample.message = f"{where}: {key!r} is {shown(image)}, expected the path of an image file"
    elif (reading.image_root is not None or not anywhere) and leaves(image):
        sample.reason = "unsafe_path"
        sample.message = f"{where}: {key!r} is {shown(image)}, a path that leaves its folder; it was not read"
    else:
        sample.source = f"{sample.source}/{image}"
        sample.path = location_of(unit, image, reading)
        take_file(sample, sample.path)


def location_of(unit: ScanUnit, image: str, reading: Reading) -> str:
    """The location of an image file that an input names."""
    return beside(unit.path, image) if reading.image_root is None else beside(f"{reading.image_root}/", image)


def leaves(path: str) -> bool:
    """Whether a relative path leads out of the folder that it is relative to."""
    return path.startswith("/") or ".." in PurePosixPath(path).parts


def take_file(sample: Sample, path: str) -> None:
    """Hash the image file of a sample."""
    try:
        found = hash_image(path)
    except InputReadError as error:
        sample.reason, sample.message = error.reason, str(error)
    else:
        sample.image_id, sample.size = found.image_id, found.size
        sample.width, sample.height = found.width, found.height


def damaged(unit: ScanUnit, position: int, why: str) -> Sample:
    """The row for all that an input holds from a position on, where its form ends to make sense."""
    return Sample(
        input=unit.input,
        sample=position,
        source=f"{unit.name}@{position}",
        reason="damaged_file",
        message=f"{unit.path}, {why}; what follows was not read, the samples it held are lost",
    )
