"""Data sets of the Hugging Face Hub as a place to read from: each file is fetched once a node, into the hub's cache."""

import errno
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import huggingface_hub

from pipeline.errors import UserError
from pipeline.storage.paths import open_regular
from pipeline.storage.store import Entry, NewFile, Store

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

PREFIX = "hf://datasets/"
FORM = "hf://datasets/OWNER/NAME, hf://datasets/OWNER/NAME@REVISION, with a path or glob of files behind it if need be"
_LOCATION = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/\s]+))?(?:/(.+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAID = 200  # characters of an error of the hub


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a data set at a commit."""

    location: str
    size_bytes: int


def is_of_hub(location: str) -> bool:
    """Whether a location is of the hub; of another form than that of its data sets it is refused by `split`."""
    return location.startswith("hf://")


def split(location: str) -> tuple[str, str | None, str | None]:
    """The data set, revision and path of a location.

    Raises:
        UserError: it has another form.
    """
    found = _LOCATION.fullmatch(location.rstrip("/"))
    if found is None or ".." in location.split("/"):
        raise UserError(f"--corpus: {location[:_SAID]} is not of the form {FORM}")
    return found[1], found[2], found[3]


def files_of(location: str, known: Sequence[str] = ()) -> list[HubFile]:
    """The files that a location stands for, sorted by name, at one commit, which is in their locations.

    Args:
        location: of a data set, or of files in it by path or glob.
        known: locations that were resolved before. Where the location names no revision, theirs is taken again.

    Raises:
        UserError: another form, or the hub does not give it.
    """
    name, revision, pattern = split(location)
    if revision is None:
        revision = next((split(one)[1] for one in known if is_of_hub(one) and split(one)[0] == name), None)
    try:
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision, files_metadata=True)
    except Exception as error:  # the hub client raises many unrelated types; all of them mean: not to be had
        raise UserError(
            f"--corpus: the hub does not give {location} ({_first_line(error)}); check its name and revision"
        ) from error
    commit = info.sha or ""
    if _COMMIT.fullmatch(commit) is None:
        raise UserError(f"--corpus: the hub names no commit of {location}; name one, as in {name}@REVISION")
    found = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    names = sorted(file for file in found if pattern is None or _matches(file, pattern))
    return [HubFile(f"{PREFIX}{name}@{commit}/{file}", found[file]) for file in names]


def _matches(file: str, pattern: str) -> bool:
    return file == pattern or file.startswith(f"{pattern}/") or fnmatchcase(file, pattern)


class HubStore:
    """A `Store` over a data set at a commit, which can only be read."""

    def __init__(self, location: str) -> None:
        name, revision, _ = split(location)
        self._name, self._revision = name, revision

    def __repr__(self) -> str:
        return f"HubStore({self.locate()!r})"

    def locate(self, key: str = "") -> str:
        """The location of a file."""
        return f"{PREFIX}{self._name}@{self._revision}" + (f"/{key}" if key else "")

    def _cached(self, key: str) -> str:
        """The file in the hub's cache, fetched if it is not there.

        Raises:
            OSError: it can't be fetched; FileNotFoundError: there is none.
        """
        try:
            return huggingface_hub.hf_hub_download(self._name, key, revision=self._revision, repo_type="dataset")
        except huggingface_hub.errors.LocalEntryNotFoundError as error:  # it could not be asked, and is not cached
            raise OSError(errno.EIO, f"the hub does not give it ({_first_line(error)})") from error
        except huggingface_hub.errors.EntryNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.locate(key)) from error
        except Exception as error:  # see `files_of`
            raise OSError(errno.EIO, f"the hub does not give it ({_first_line(error)})") from error

    def stat(self, key: str) -> Entry | None:
        """The file under a key, None when there is none. Its tag is the commit."""
        try:
            return Entry(key, os.stat(self._cached(key)).st_size, str(self._revision))
        except FileNotFoundError:
            return None

    def read(self, key: str) -> bytes:
        """All bytes of a file."""
        with self.open(key) as stream:
            return stream.read()

    def open(self, key: str) -> BinaryIO:
        """A file as a stream."""
        return io.BufferedReader(self.raw(key))

    def raw(self, key: str) -> io.FileIO:
        """A file as an unbuffered stream."""
        return io.FileIO(self._cached(key), "r", opener=open_regular)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Not to be had: inputs are listed by `files_of`."""
        self._refuse()

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        """Not to be had: inputs are listed by `files_of`."""
        self._refuse()

    def names(self, prefix: str = "") -> Sequence[str]:
        """Not to be had: inputs are listed by `files_of`."""
        self._refuse()

    def read_all(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """Not to be had."""
        self._refuse()

    def arrow(self) -> "FileSystem":
        """Not to be had."""
        self._refuse()

    def local(self, keys: Sequence[str]) -> AbstractContextManager[Sequence[str]]:
        """Not to be had."""
        self._refuse()

    def put(self, key: str, data: bytes) -> Entry:
        """Not to be had."""
        self._refuse()

    def create(self, key: str, data: bytes) -> bool:
        """Not to be had."""
        self._refuse()

    def new_file(self, key: str) -> AbstractContextManager[NewFile]:
        """Not to be had."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Not to be had."""
        self._refuse()

    def clear(self, prefix: str) -> None:
        """Not to be had."""
        self._refuse()

    def scratch(self) -> AbstractContextManager[Path]:
        """Not to be had."""
        self._refuse()

    def hold(self, key: str, owner: str, tell: Callable[[str], None] = lambda _: None) -> AbstractContextManager[Store]:
        """Not to be had."""
        self._refuse()

    def holder(self, key: str) -> str:
        """Not to be had."""
        self._refuse()

    def clear_unfinished(self) -> None:
        """Not to be had."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(f"{self.locate()} can only be read file by file; write to a folder")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_SAID]
