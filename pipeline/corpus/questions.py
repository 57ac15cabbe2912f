"""Scanning JSON of questions (VQAv2, with or without a second file of annotations) and of captions (COCO).

A sample is an image with all that is asked about it, at the byte where its first question, or its entry among the
images, begins. Questions of an image lie anywhere in the file: each unit walks through all of it, and keeps what
belongs to its own images.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.corpus.pieces import DamagedAtError, Element, elements
from pipeline.corpus.reading import Reading
from pipeline.corpus.record import damaged, leaves, location_of, take_image
from pipeline.corpus.sample import ScanUnit, parse_record, read_prompts, shown
from pipeline.errors import UserError
from pipeline.storage.input_file import open_input
from pipeline.storage.places import is_there
from schemas.samples import Prompt, Sample
from schemas.statuses import OK
from schemas.wording import counted

FILE_KEYS = ("file_name", "image_file", "image_name")  # beside the key that the user names for images
_NAMES: tuple[Callable[[int, str], str], ...] = (
    lambda number, subset: f"COCO_{subset}_{number:012d}.jpg",
    lambda number, subset: f"{number:012d}.jpg",
    lambda number, subset: f"{subset}/COCO_{subset}_{number:012d}.jpg",
    lambda number, subset: f"{subset}/{number:012d}.jpg",
    lambda number, subset: f"{number}.jpg",
)


@dataclass(slots=True)
class _Picture:
    """An image, and what is asked about it."""

    begin: int  # byte of its first question or of its own entry
    image: Any  # its id
    file: Any = None  # its name, where an entry has it
    asked: list[dict[str, Any]] = field(default_factory=list)
    captions: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    """What one walk through the file of questions gives."""

    pictures: dict[Any, _Picture] = field(default_factory=dict)  # of the unit, by the image's id
    first: Any = None  # id of the first image of the file
    subset: str = ""  # as the file says, "train2014" for example
    bad: list[Sample] = field(default_factory=list)
    size: int = 0  # of the file


def scan_questions(unit: ScanUnit, reading: Reading) -> Iterator[Sample]:
    """Images whose first question, or entry, begins in [begin, end); rows for entries in another form.

    Raises:
        UserError: the file holds neither questions nor images with captions.
        InputReadError: the storage does not give one of the files. An image it does not give is that sample's row.
    """
    found = _walk(unit)
    _annotate(unit, found)
    name_of = _naming(unit, reading, found)
    plain = replace(reading, prompt_column=None, reference_column=None, type_column=None, id_column=None)
    samples = list(found.bad)
    for picture in found.pictures.values():
        name = f"{unit.name}@{picture.begin}"
        sample = Sample(input=unit.input, sample=picture.begin, source=name)
        record = {"prompts": picture.asked} if picture.asked else {"caption": picture.captions or None}
        sample.prompts = read_prompts(record, name, plain)
        file = name_of(picture.image) if picture.file is None else picture.file
        take_image(sample, unit, file, reading, where=f"{unit.path}, byte {picture.begin}")
        samples.append(sample)
    yield from sorted(samples, key=lambda sample: sample.sample)


def _walk(unit: ScanUnit) -> _Found:
    found = _Found()
    elsewhere: set[Any] = set()  # images of other units
    kinds = set()
    with open_input(unit.path) as stream:
        try:
            for element in elements(stream):
                kinds.add(element.key)
                if element.key == "data_subtype":
                    found.subset = str(element.text.decode("utf-8", "replace")).strip('"')
                elif element.key in ("questions", "images"):
                    _take(unit, element, found, elsewhere)
        except DamagedAtError as error:
            if unit.begin <= error.begin < unit.end or (unit.last and error.begin >= unit.end):
                found.bad.append(damaged(unit, error.begin, str(error)))
        found.size = stream.seek(0, 2)
    if not kinds & {"questions", "images"} and not found.bad:
        raise UserError(
            f"--corpus: {unit.path} holds neither 'questions' nor 'images' with 'annotations'; its members are "
            f"{shown(sorted(str(kind) for kind in kinds))}: name a file of questions (before that of their "
            "annotations), of captions, or a JSONL manifest"
        )
    return found


def _is_own(unit: ScanUnit, begin: int) -> bool:
    return unit.begin <= begin and (begin < unit.end or unit.last)


def _take(unit: ScanUnit, element: Element, found: _Found, elsewhere: set[Any]) -> None:
    """Take a question or an image's entry, if the image is the unit's own."""
    is_image = element.key == "images"
    entry: dict[str, Any] = {}
    try:
        entry = parse_record(element.text)
        image = entry.get("id" if is_image else "image_id")
        if not isinstance(image, str | int) or isinstance(image, bool):
            raise ValueError(f"its image's id is {shown(image)}, expected a text or a whole number")
    except ValueError as error:
        if _is_own(unit, element.begin):
            bad = _bad(unit, element.begin, f"{unit.path}, byte {element.begin}: {error}")
            if entry and not is_image:
                bad.prompts = read_prompts({"prompts": [_asked(entry)]}, bad.source)
            found.bad.append(bad)
        return
    found.first = image if found.first is None else found.first
    if image in elsewhere:
        return
    if image not in found.pictures:
        if not _is_own(unit, element.begin):
            elsewhere.add(image)
            return
        found.pictures[image] = _Picture(element.begin, image)
    picture = found.pictures[image]
    named = next((entry[key] for key in ("image", *FILE_KEYS) if key in entry), None)
    picture.file = named if picture.file is None else picture.file
    if not is_image:
        picture.asked.append(_asked(entry))


def _asked(question: dict[str, Any]) -> dict[str, Any]:
    """A question as a prompt in our own form."""
    item = {"prompt": question.get("question"), "id": question.get("question_id")}
    return {key: value for key, value in item.items() if value is not None}


def _bad(unit: ScanUnit, position: int, message: str) -> Sample:
    name = f"{unit.name}@{position}"
    return Sample(input=unit.input, sample=position, source=name, reason="bad_record", message=message)


def _annotate(unit: ScanUnit, found: _Found) -> None:
    """Add answers to questions and captions to images, from the second file or, without one, from the same."""
    questions = {item["id"]: item for picture in found.pictures.values() for item in picture.asked if _has_id(item)}
    path = unit.partner or unit.path
    # Positions in the second file go on behind those in the first.
    base = found.size if unit.partner else 0
    kinds, is_damaged = set(), False
    with open_input(path) as stream:
        try:
            for element in elements(stream):
                kinds.add(element.key)
                if element.key != "annotations":
                    continue
                try:
                    _add(parse_record(element.text), questions, found)
                except ValueError as error:
                    if unit.last:
                        message = f"{path}, byte {element.begin}: {error}"
                        found.bad.append(_bad(unit, base + element.begin, message))
        except DamagedAtError as error:
            is_damaged = True
            if unit.last and unit.partner:
                found.bad.append(damaged(unit, base + error.begin, f"its annotations {path}: {error}"))
    if unit.partner and "annotations" not in kinds and not is_damaged:
        raise UserError(
            f"--corpus: {path} holds no 'annotations', or none in them; its members are "
            f"{shown(sorted(str(kind) for kind in kinds))}: name a file of questions, then +, then that of their "
            "annotations"
        )


def _has_id(item: dict[str, Any]) -> bool:
    return isinstance(item.get("id"), str | int)


def _add(annotation: dict[str, Any], questions: dict[Any, dict[str, Any]], found: _Found) -> None:
    question, image = annotation.get("question_id"), annotation.get("image_id")
    if isinstance(question, str | int):
        item = questions.get(question)
        if item is not None:
            item["references"] = _joined(item.get("references"), _answers(annotation))
            item["type"] = item.get("type") or annotation.get("answer_type")
    elif "caption" in annotation and isinstance(image, str | int):
        picture = found.pictures.get(image)
        if picture is not None and not picture.asked:
            picture.captions.append(annotation["caption"])
    else:
        raise ValueError("an annotation without 'question_id', and without 'image_id' and 'caption'")


def _answers(annotation: dict[str, Any]) -> Any:
    """All that was answered, as often as it was; or the one answer of a set that has but one."""
    answers = annotation.get("answers")
    if not isinstance(answers, list):
        return annotation.get("multiple_choice_answer", annotation.get("answer"))
    texts = [one.get("answer") if isinstance(one, dict) else one for one in answers]
    return [sys.intern(text) if isinstance(text, str) else text for text in texts]


def _joined(before: Any, answers: Any) -> Any:
    """The answers of two annotations of one question."""
    if before is None or answers is None:
        return answers if before is None else before
    return [one for some in (before, answers) for one in (some if isinstance(some, list) else [some])]


def _naming(unit: ScanUnit, reading: Reading, found: _Found) -> Callable[[Any], Any]:
    """How files are called after their image's id: as COCO names them, in the way in which the first one is there."""

    def candidates(image: Any) -> list[str]:
        if isinstance(image, int) and not found.subset:
            return [f"{image:012d}.jpg", f"{image}.jpg"]
        if isinstance(image, int):
            return [name(image, found.subset) for name in _NAMES]
        return [image, f"{image}.jpg"]

    place = 0
    if found.first is not None and found.pictures:
        for number, name in enumerate(candidates(found.first)):
            if not leaves(name) and is_there(location_of(unit, name, reading)):
                place = number
                break
    return lambda image: candidates(image)[min(place, len(candidates(image)) - 1)]


@dataclass(slots=True)
class Pairing:
    """Whether two files of questions and annotations belong together."""

    questions: str  # the two files
    annotations: str
    asked: int = 0  # prompts
    answered: int = 0  # of them

    def add(self, prompts: Sequence[Prompt], reading: Reading) -> None:
        """Count the questions about an image, without what is asked about every image; bad ones say nothing."""
        own = prompts[: len(prompts) - len(reading.prompts)]
        good = [prompt for prompt in own if prompt.status == OK]
        self.asked += len(good)
        self.answered += sum(bool(prompt.references) for prompt in good)

    @property
    def is_wrong(self) -> bool:
        """Not one question has an answer."""
        return self.asked > 0 and not self.answered

    def refusal(self) -> str:
        """What is said of files that do not belong together."""
        return (
            f"--corpus: not one of {counted(self.asked, 'questions')} of {self.questions} has an answer in "
            f"{self.annotations}; name two files that belong together, or the questions alone"
        )

    def note(self) -> str | None:
        """One line about questions without answers, None where there are none."""
        if self.asked == self.answered:
            return None
        less = self.asked - self.answered
        return (
            f"{less:,} of {counted(self.asked, 'questions')} of {self.questions} have no answer in {self.annotations}"
        )
