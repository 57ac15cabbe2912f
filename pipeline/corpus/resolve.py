"""What the user calls a corpus: `--corpus` patterns resolved to WebDataset tars and JSONL manifests."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from pipeline.corpus.sample import is_unicode, printable
from pipeline.errors import UserError
from pipeline.storage.paths import READ_INSTEAD, not_a_file, refuse_url

MANIFEST_SUFFIXES = (".jsonl", ".ndjson")


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
    raise UserError(f"--corpus: {path} is neither a WebDataset .tar nor a .jsonl manifest")


def common_root(inputs: Sequence[CorpusInput]) -> str:
    """The deepest folder that holds all inputs."""
    return os.path.commonpath([os.path.dirname(item.path) for item in inputs])


def input_name(path: str, root: str) -> str:
    """What an input is called in sources and prompt ids: its path seen from `root`.

    `root` is the common folder of the inputs that were indexed first and stays with the index, so names never change
    when the corpus grows; a later input outside of it begins with `../`. No two inputs have one name.
    """
    return os.path.relpath(path, root)


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
            expanded = list(braceexpand(os.path.expanduser(pattern)))
        except ValueError as error:
            raise UserError(
                f"--corpus: {pattern!r} has unbalanced braces; write e.g. shard-{{000..009}}.tar"
            ) from error
        for one in expanded:
            paths = sorted(glob.glob(one)) if glob.has_magic(one) and not os.path.exists(one) else [one]
            if not paths:
                raise UserError(f"--corpus: nothing matches {one!r} (from {os.getcwd()})")
            for path in paths:
                absolute = os.path.abspath(path)
                if absolute in seen:
                    raise UserError(f"--corpus: {path} is named twice (by {seen[absolute]!r} and {pattern!r})")
                if os.path.isdir(absolute):
                    raise UserError(f"--corpus: {path} is a folder; name its tars or manifests, e.g. {path}/*.tar")
                if not os.path.exists(absolute):
                    raise UserError(f"--corpus: {path} does not exist (looked from {os.getcwd()})")
                if (kind := not_a_file(absolute)) is not None:
                    raise UserError(f"--corpus: {path} is {kind}, not a regular file; images are read by byte offset")
                if not is_unicode(absolute):
                    raise UserError(f"--corpus: {printable(absolute)} has a name that is no UTF-8; rename it")
                if not os.access(absolute, os.R_OK):
                    raise UserError(f"--corpus: {path} can't be read; check its permissions")
                seen[absolute] = pattern
                inputs.append(CorpusInput(absolute, _kind(path), Path(absolute).stat().st_size))
    if not inputs:
        raise UserError("--corpus: no input given; name WebDataset tars or a JSONL manifest")
    return inputs
