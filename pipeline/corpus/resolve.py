"""What the user calls a corpus: `--corpus` patterns resolved to inputs, each of a kind that a reader reads."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

from braceexpand import braceexpand

from pipeline.corpus.folder import is_image
from pipeline.corpus.sample import MANIFEST_FORM, is_unicode, printable
from pipeline.errors import UserError
from pipeline.storage.hub import files_of, is_of_hub
from pipeline.storage.input_file import InputReadError, open_input
from pipeline.storage.paths import READ_INSTEAD, as_address, is_object, refuse_url
from pipeline.storage.places import absolute, common_folder, expand, is_there, real, seen_from
from pipeline.storage.store import StorageError
from pipeline.storage.tree import is_folder, tree
from schemas.wording import counted

MANIFEST_SUFFIXES = (".jsonl", ".ndjson")
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tzst")
TAR_SUFFIXES = (".tar", *PACKED_SUFFIXES)
MAX_EXPANDED = 250_000  # paths that the braces of one pattern may stand for
LOOKERS = 16
MAX_STATE_BYTES = 64 << 20  # of the description of a saved data set
_RANGE = re.compile(r"\{(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.-?[0-9]+)?\}")
_PAIR = re.compile(r"(.+\.json)\+(.+\.json)")
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")  # of records, which no line is
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PEEKED = 4096
# How files begin that are often taken for one of ours, and what to do with them.
_FOREIGN = (
    (_GZIP, "is compressed by gzip, whatever its name says: decompress it first"),
    (_ZSTD, "is compressed by zstd, whatever its name says: decompress it first"),
    (b"BZh", "is compressed by bzip2, whatever its name says: decompress it first"),
    (b"\xfd7zXZ", "is compressed by xz, whatever its name says: decompress it first"),
    (b"PK\x03\x04", "is a zip archive: pack its files into a .tar"),
    (b"ARROW1", "is a Feather file (Arrow's form for random access): write it as Parquet"),
    (b"PAR1", "is a Parquet file, whatever its name says: name it .parquet"),
)
_TABLES = (".csv", ".tsv", ".feather")
_KINDS = "WebDataset tars (plain, .gz, .zst), Parquet, .jsonl, .json, or folders of images"


@dataclass(frozen=True)
class CorpusInput:
    """One input of the corpus: a file, a pair of files, or a folder of images."""

    path: str  # absolute, or `s3://BUCKET/KEY`, or `hf://datasets/OWNER/NAME@COMMIT/FILE`
    kind: str  # of a reader, see `pipeline.corpus.scan.READERS`
    size_bytes: int  # of a pair both, of a folder its images
    partner: str | None = None  # the second file of a pair
    count: int | None = None  # of the images of a folder, which is split by it; everything else is by its bytes
    note: str | None = None  # what the user should know of how it was chosen

    @property
    def length(self) -> int:
        """What units are ranges of."""
        return self.size_bytes if self.count is None else self.count


def _kind(path: str, beginning: bytes) -> str:
    """The kind of a file by its name and how it begins.

    Raises:
        UserError: there is no reader for it.
    """
    name = path.lower()
    if not beginning and name.endswith((*PACKED_SUFFIXES, ".json", ".parquet", ".arrow")):
        raise UserError(f"--corpus: {path} has no bytes; fetch it again, or leave it out")
    if name.endswith(TAR_SUFFIXES):
        packed = {_GZIP: "tar_gzip", _ZSTD: "tar_zstd"}
        for magic, kind in packed.items():
            if beginning.startswith(magic):
                return kind
    for magic, told in _FOREIGN:
        if beginning.startswith(magic) and not (magic == b"PAR1" and name.endswith(".parquet")):
            raise UserError(f"--corpus: {printable(path)} {told}")
    if name.endswith(".tar"):
        return "tar"
    if name.endswith(TAR_SUFFIXES):
        form = "zstd" if name.endswith("zst") else "gzip"
        raise UserError(f"--corpus: {path} is not compressed by {form}, as its name says; rename it or fetch it again")
    if name.endswith(MANIFEST_SUFFIXES):
        return "instruct" if _ARRAY.match(beginning) else "manifest"
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(".arrow"):
        return "arrow"
    if name.endswith(".json"):
        first = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if first in (b"[", b"{"):
            return "instruct" if first == b"[" else "questions"
        raise UserError(f"--corpus: {path} begins with {first!r}, no JSON array or object; check or remove it")
    if name.endswith((".tar.bz2", ".tar.xz")):
        raise UserError(f"--corpus: {path} is a tar compressed otherwise than by gzip or zstd: decompress it first")
    what = "a table that is not read" if name.endswith(_TABLES) else f"none of {_KINDS}"
    raise UserError(f"--corpus: {path} is {what}; write a manifest with a line for each image: {MANIFEST_FORM}")


def common_root(inputs: Sequence[CorpusInput]) -> str:
    """The deepest folder that holds all inputs but those that lie in none."""
    return common_folder([item.path for item in inputs])


def input_name(path: str, root: str) -> str:
    """What an input is called in sources and prompt ids: its path seen from `root`, or its URL.

    `root` is the common folder of the inputs that were indexed first and stays with the index, so names never change
    when the corpus grows; a later input outside of it begins with `../`. No two inputs have one name.
    """
    return seen_from(path, root)


def _opened(path: str, absolute: str) -> tuple[int, bytes]:
    """The bytes of an input file, which is opened to see that it can be read, and how it begins.

    Raises:
        UserError: it is not there, is no file, or can't be read.
    """
    try:
        with open_input(absolute) as stream:
            beginning = stream.read(_PEEKED)
            return stream.seek(0, os.SEEK_END), beginning
    except InputReadError as error:
        if error.reason == "missing_file":
            said = f"{path} does not exist{_looked_from(path)}"
        elif error.kind is not None:
            said = f"{path} is {error.kind}, not a regular file; images are read by byte offset"
        else:
            said = f"{error}; check its permissions and its storage"
        raise UserError(f"--corpus: {printable(said)}") from error


def _looked_from(path: str) -> str:
    return "" if is_object(path) else f" (looked from {os.getcwd()})"


def _of_folder(path: str) -> list[CorpusInput]:
    """What a folder holds: a saved data set, Parquet files however deep, or images however deep.

    Raises:
        UserError: none of these, Parquet beside tars or a manifest, or it can't be read.
    """
    absolute_path = absolute(path)
    try:
        saved = _saved(absolute_path, path)
        if saved:
            return [_of_file(one) for one in saved]
        found = [one.name for one in tree(absolute_path)]
        tables = [name for name in found if name.lower().endswith(".parquet")]
        for suffixes, kind in ((TAR_SUFFIXES, "tars"), (MANIFEST_SUFFIXES, "a manifest")):
            other = next((name for name in found if name.lower().endswith(suffixes)), None)
            if tables and other is not None:
                raise UserError(
                    f"--corpus: {printable(path)} holds Parquet and {kind} ({printable(tables[0])}, "
                    f"{printable(other)}), and only one kind would be read; name the files that are meant"
                )
        if tables:
            first, *rest = [_of_file(os.path.join(path, name)) for name in tables]
            return [replace(first, note=_images_beside(path, tables, found)), *rest]
        sizes = [one.size_bytes for one in tree(absolute_path, sizes=True) if is_image(one.name)]
        if sizes:
            return [CorpusInput(absolute_path, "folder", sum(sizes), count=len(sizes))]
    except InputReadError as error:
        raise UserError(f"--corpus: {printable(str(error))}; check its permissions and its storage") from error
    others = sorted({os.path.splitext(name)[1] for name in found if name.endswith((*TAR_SUFFIXES, *MANIFEST_SUFFIXES))})
    instead = f"name its files, e.g. {path}/*{others[0]}" if others else f"name {_KINDS}"
    raise UserError(f"--corpus: {printable(path)} is a folder without images, Parquet or a saved data set; {instead}")


def _images_beside(path: str, tables: Sequence[str], found: Sequence[str]) -> str | None:
    """What is said of images in a folder of Parquet, which may name them or not."""
    images = sum(map(is_image, found))
    if not images:
        return None
    return (
        f"{printable(path)} holds {counted(len(tables), 'Parquet files')} and {counted(images, 'image files')}: the "
        "Parquet is read, and the images that it names alone"
    )


def _saved(absolute: str, path: str) -> list[str]:
    """The Arrow files of a folder that `datasets.save_to_disk` wrote, in order; none where it is another one."""
    if is_there(os.path.join(absolute, "dataset_dict.json")):
        splits = _described(absolute, "dataset_dict.json", "splits")
        return [file for split in splits for file in _saved(os.path.join(absolute, split), os.path.join(path, split))]
    if not is_there(os.path.join(absolute, "state.json")):
        return []
    files = _described(absolute, "state.json", "_data_files")
    return [os.path.join(path, name) for name in files]


def _described(folder: str, name: str, key: str) -> list[str]:
    """Names of files or folders that a description of a saved data set lists."""
    location = os.path.join(folder, name)
    with open_input(location) as stream:
        text = stream.read(MAX_STATE_BYTES)
    try:
        listed = json.loads(text)[key]
        names = [item["filename"] if isinstance(item, dict) else item for item in listed]
        odd = next((one for one in names if not isinstance(one, str) or "/" in one or one in ("", ".", "..")), None)
        if odd is not None:
            raise ValueError(f"it lists {odd!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--corpus: {printable(location)} does not describe a saved data set ({error}); save it again"
        ) from error
    return names


def _of_file(path: str) -> CorpusInput:
    location = absolute(path)
    size_bytes, beginning = _opened(path, location)
    return CorpusInput(location, _kind(path, beginning), size_bytes)


def _of_pair(questions: str, annotations: str) -> CorpusInput:
    first, second = _of_file(questions), _of_file(annotations)
    for item in (first, second):
        if item.kind != "questions":
            raise UserError(f"--corpus: {item.path} is no JSON object; a pair is of questions and annotations")
    return CorpusInput(first.path, "questions", first.size_bytes + second.size_bytes, second.path)


def _of_hub(location: str, known: Sequence[str]) -> Iterator[CorpusInput]:
    """The files of a data set that readers read; where none is named, its Parquet files alone, if it has any.

    Raises:
        UserError: there are none.
    """
    found = files_of(location, known)
    tables = [file for file in found if file.location.lower().endswith(".parquet")]
    tars = [file for file in found if file.location.lower().endswith(TAR_SUFFIXES)]
    if not (chosen := tables or tars):
        raise UserError(f"--corpus: {location} holds neither Parquet files nor tars; fetch it and name its files")
    for file in chosen:
        if file.location.lower().endswith(".parquet"):
            yield CorpusInput(file.location, "parquet", file.size_bytes)
        else:
            _, beginning = _opened(file.location, file.location)
            yield CorpusInput(file.location, _kind(file.location, beginning), file.size_bytes)


def _refuse_large_ranges(pattern: str) -> None:
    """Refuse a range that would not even fit into memory."""
    for first, last in _RANGE.findall(pattern):
        if max(len(first), len(last)) > len(str(MAX_EXPANDED)) + 20 or abs(int(last) - int(first)) >= MAX_EXPANDED:
            raise _too_many(pattern)


def _too_many(pattern: str) -> UserError:
    return UserError(f"--corpus: {pattern!r} stands for over {MAX_EXPANDED:,} paths; use a glob (shard-*.tar)")


def _expanded(pattern: str) -> list[str]:
    """The paths that the braces of a pattern stand for."""
    try:
        _refuse_large_ranges(pattern)
        expanded = list(islice(braceexpand(os.path.expanduser(pattern)), MAX_EXPANDED + 1))
    except ValueError as error:
        raise UserError(f"--corpus: {pattern!r} has unbalanced braces; write e.g. shard-{{000..009}}.tar") from error
    if len(expanded) > MAX_EXPANDED:
        raise _too_many(pattern)
    return [as_address("--corpus", one, READ_INSTEAD) if is_object(one) else one for one in expanded]


def _inputs(pattern: str, known: Sequence[str]) -> Iterator[CorpusInput]:
    """The inputs that a pattern stands for, in order."""
    if is_of_hub(pattern):
        yield from _of_hub(pattern, known)
        return
    if not is_object(pattern):
        refuse_url("--corpus", pattern, READ_INSTEAD)
    pair = _PAIR.fullmatch(pattern)
    if pair is not None:
        questions, annotations = _expanded(pair[1]), _expanded(pair[2])
        if len(questions) != len(annotations):
            raise UserError(
                f"--corpus: {pattern!r} stands for {len(questions)} files of questions and {len(annotations)} of "
                "annotations; a pair has one of each"
            )
        yield from map(_of_pair, questions, annotations)
        return
    paths = [path for one in _expanded(pattern) for path in _matching(one)]
    with ThreadPoolExecutor(LOOKERS) as pool:  # of a place that answers late many are asked at once
        try:
            for found in pool.map(_of_path, paths):
                yield from found
        finally:
            pool.shutdown(cancel_futures=True)


def _matching(pattern: str) -> list[str]:
    """The paths that a pattern without braces stands for."""
    try:
        paths = expand(pattern)
    except StorageError as error:
        raise UserError(f"--corpus: {pattern} can't be looked for: {error.strerror}") from error
    if not paths:
        raise UserError(f"--corpus: nothing matches {pattern!r}{_looked_from(pattern)}")
    return paths


def _of_path(path: str) -> list[CorpusInput]:
    try:
        return _of_folder(path) if is_folder(path) else [_of_file(path)]
    except StorageError as error:
        raise UserError(f"--corpus: {path} can't be read: {error.strerror}") from error


def resolve_corpus(patterns: Sequence[str], known: Sequence[str] = ()) -> list[CorpusInput]:
    """Expand braces and globs, in the order given (globs sorted by name), to existing inputs.

    Args:
        patterns: paths with `{000000..000002}` braces and `*?[]` globs, pairs `questions.json+annotations.json`, and
            `hf://datasets/OWNER/NAME`; all kinds may be mixed.
        known: inputs that are indexed. The commit of a data set of the hub that is among them stays.

    Raises:
        UserError: a pattern matches nothing, a file is of an unknown kind, unreadable, or named twice.
    """
    inputs: list[CorpusInput] = []
    seen: dict[str, str] = {}
    for pattern in patterns:
        for item in _inputs(pattern, known):
            if not is_unicode(item.path):
                raise UserError(f"--corpus: {printable(item.path)} has a name that is no UTF-8; rename it")
            # A link to a folder would give everything in it twice.
            place = real(item.path)
            if place in seen:
                raise UserError(f"--corpus: {item.path} is named twice (by {seen[place]!r} and {pattern!r})")
            seen[place] = pattern
            inputs.append(item)
    if not inputs:
        raise UserError(f"--corpus: no input given; name {_KINDS}")
    return inputs
