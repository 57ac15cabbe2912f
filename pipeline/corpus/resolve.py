"""What the user calls a corpus: `--corpus` patterns resolved to WebDataset tars and JSONL manifests."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from braceexpand import braceexpand

from pipeline.corpus.sample import MANIFEST_FORM, is_unicode, printable
from pipeline.errors import UserError
from pipeline.storage.input_file import InputReadError, open_input
from pipeline.storage.paths import READ_INSTEAD, refuse_url
from pipeline.storage.places import expand

MANIFEST_SUFFIXES = (".jsonl", ".ndjson")
MAX_EXPANDED = 250_000  # paths that the braces of one pattern may stand for
_RANGE = re.compile(r"\{(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.-?[0-9]+)?\}")
# How files begin that are often taken for one of ours, and what to do with them.
_FOREIGN = (
    (b"\x1f\x8b", "is compressed by gzip, whatever its name says: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd, whatever its name says: decompress it first"),
    (b"BZh", "is compressed by bzip2, whatever its name says: decompress it first"),
    (b"\xfd7zXZ", "is compressed by xz, whatever its name says: decompress it first"),
    (b"PK\x03\x04", "is a zip archive: pack its files into a .tar"),
    (b"PAR1", "is a Parquet file: write its rows as a .jsonl manifest, a line an image"),
)
_TABLES = (".parquet", ".csv", ".tsv", ".json", ".arrow")


@dataclass(frozen=True)
class CorpusInput:
    """One input file of the corpus."""

    path: str  # absolute
    kind: str  # "tar" or "manifest"
    size_bytes: int


def _kind(path: str) -> str:
    name = path.lower()
    if name.endswith(".tar"):
        return "tar"
    if name.endswith(MANIFEST_SUFFIXES):
        return "manifest"
    if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise UserError(
            f"--corpus: {path} is a compressed tar; images are read by byte offset: decompress it to a .tar first"
        )
    what = "a table that is not read" if name.endswith(_TABLES) else "neither a WebDataset .tar nor a .jsonl manifest"
    raise UserError(f"--corpus: {path} is {what}; write a manifest with a line for each image: {MANIFEST_FORM}")


def common_root(inputs: Sequence[CorpusInput]) -> str:
    """The deepest folder that holds all inputs."""
    return os.path.commonpath([os.path.dirname(item.path) for item in inputs])


def input_name(path: str, root: str) -> str:
    """What an input is called in sources and prompt ids: its path seen from `root`.

    `root` is the common folder of the inputs that were indexed first and stays with the index, so names never change
    when the corpus grows; a later input outside of it begins with `../`. No two inputs have one name.
    """
    return os.path.relpath(path, root)


def _size(path: str, absolute: str) -> int:
    """The bytes of an input file, which is opened to see that it can be read.

    Raises:
        UserError: it is not there, is no file, or can't be read.
    """
    try:
        with open_input(absolute) as stream:
            beginning = stream.read(8)
            for magic, told in _FOREIGN:
                if beginning.startswith(magic):
                    raise UserError(f"--corpus: {printable(path)} {told}")
            return stream.seek(0, os.SEEK_END)
    except InputReadError as error:
        if error.reason == "missing_file":
            said = f"{path} does not exist (looked from {os.getcwd()})"
        elif error.kind == "a folder":
            said = f"{path} is a folder; name its tars or manifests, e.g. {path}/*.tar"
        elif error.kind is not None:
            said = f"{path} is {error.kind}, not a regular file; images are read by byte offset"
        else:
            said = f"{error}; check its permissions and its storage"
        raise UserError(f"--corpus: {printable(said)}") from error


def _refuse_large_ranges(pattern: str) -> None:
    """Refuse a range that would not even fit into memory."""
    for first, last in _RANGE.findall(pattern):
        if max(len(first), len(last)) > len(str(MAX_EXPANDED)) + 20 or abs(int(last) - int(first)) >= MAX_EXPANDED:
            raise _too_many(pattern)


def _too_many(pattern: str) -> UserError:
    return UserError(f"--corpus: {pattern!r} stands for over {MAX_EXPANDED:,} paths; use a glob (shard-*.tar)")


def resolve_corpus(patterns: Sequence[str]) -> list[CorpusInput]:
    """Expand braces and globs, in the order given (globs sorted by name), to existing files.

    Args:
        patterns: paths with `{000000..000002}` braces and `*?[]` globs; tars and JSONL manifests may be mixed.

    Raises:
        UserError: a pattern matches nothing, a file is of an unknown kind, unreadable, or named twice.
    """
    inputs: list[CorpusInput] = []
    seen: dict[str, str] = {}
    for pattern in patterns:
        refuse_url("--corpus", pattern, READ_INSTEAD)
        try:
            _refuse_large_ranges(pattern)
            expanded = list(islice(braceexpand(os.path.expanduser(pattern)), MAX_EXPANDED + 1))
        except ValueError as error:
            raise UserError(
                f"--corpus: {pattern!r} has unbalanced braces; write e.g. shard-{{000..009}}.tar"
            ) from error
        if len(expanded) > MAX_EXPANDED:
            raise _too_many(pattern)
        for one in expanded:
            paths = expand(one)
            if not paths:
                raise UserError(f"--corpus: nothing matches {one!r} (from {os.getcwd()})")
            for path in paths:
                absolute = os.path.abspath(path)
                real = os.path.realpath(absolute)  # a link to a folder would give everything in it twice
                if real in seen:
                    raise UserError(f"--corpus: {path} is named twice (by {seen[real]!r} and {pattern!r})")
                size_bytes = _size(path, absolute)
                if not is_unicode(absolute):
                    raise UserError(f"--corpus: {printable(absolute)} has a name that is no UTF-8; rename it")
                seen[real] = pattern
                inputs.append(CorpusInput(absolute, _kind(path), size_bytes))
    if not inputs:
        raise UserError("--corpus: no input given; name WebDataset tars or a JSONL manifest")
    return inputs
