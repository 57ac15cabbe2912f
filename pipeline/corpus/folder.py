"""Scanning a folder of images, however deep: a sample an image file, in the order of their names."""

from collections import Counter
from collections.abc import Iterator

from pipeline.corpus.reading import Reading
from pipeline.corpus.record import take_file
from pipeline.corpus.sample import ScanUnit, is_unicode, printable, read_prompts
from pipeline.corpus.tar import IMAGE_EXTENSIONS
from pipeline.storage.places import beside
from pipeline.storage.tree import Found, tree
from schemas.samples import Sample
from schemas.wording import counted

MAX_EXTENSIONS = 8  # of files that are no images, by name


def is_image(name: str) -> bool:
    """Whether a file is taken for an image by its name."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def scan_folder(unit: ScanUnit, reading: Reading) -> Iterator[Sample]:
    """Images whose number lies in [begin, end), which is their position.

    A link that leads out of the folder is not followed. Files that no image format is named like share one row.
    """
    number = 0
    others: Counter[str] = Counter()
    for found in tree(unit.path):
        if not is_image(found.name):
            others[f".{found.name.rpartition('.')[2].lower()}" if "." in found.name else "no extension"] += 1
            continue
        if unit.begin <= number < unit.end:
            yield _sample_of(unit, number, found, reading)
        number += 1
    if others and unit.last:
        kinds = ", ".join(f"{printable(kind)} {count:,}" for kind, count in others.most_common(MAX_EXTENSIONS))
        count = counted(others.total(), "files")
        yield Sample(
            input=unit.input,
            sample=number,
            source=f"{unit.name}@{number}",
            reason="not_images",
            message=f"{unit.path} holds {count}, no images by their names and not read: {kinds}",
        )


def _sample_of(unit: ScanUnit, number: int, found: Found, reading: Reading) -> Sample:
    name = f"{unit.name}/{printable(found.name)}"
    sample = Sample(input=unit.input, sample=number, source=name)
    if found.leads_out:
        sample.reason, sample.message = "unsafe_path", f"{name} is a link that leads out of {unit.path}; not followed"
    elif not is_unicode(found.name):
        sample.reason, sample.message = "bad_record", f"{name} has a name that is no UTF-8; rename it"
    else:
        sample.path = beside(f"{unit.path}/", found.name)
        take_file(sample, sample.path)
    sample.prompts = read_prompts({}, name, reading)
    return sample
