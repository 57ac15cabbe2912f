"""What the processes of one run leave each other in the output folder: the request to stop, and the tries of shards.

Every run has a folder of its own, so what a killed run left can't be taken for a word of this one, and what workers of
a killed run still write (they can outlive their driver by seconds) is not read. Small files, each written whole.
"""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage.files import replace_file, writing


@dataclass(frozen=True)
class Tries:
    """The tries of one piece of work, a file each, which outlive the process that made them.

    A file holds why its try failed; as long as nobody says otherwise, that its process died.
    """

    folder: Path
    name: str

    def failures(self) -> list[str]:
        """Why the earlier tries failed."""
        found: list[str] = []
        while True:
            try:
                found.append(self._file(len(found)).read_text())
            except FileNotFoundError:
                return found

    def note(self, number: int, failure: str) -> None:
        """Say why try `number` failed, or, as it begins, why it will have failed if nothing else is said.

        Raises:
            UserError: the output can't be written.
        """
        replace_file(self._file(number), failure.encode())

    def forget(self) -> None:
        """The work is done: a later try counts from zero."""
        for number in range(len(self.failures())):
            self._file(number).unlink()

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number}"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def stop_file(self) -> Path:
        """While it exists, workers begin no further shard."""
        return self.path / "stop"

    @property
    def tries(self) -> Path:
        """Where tries are kept, in a folder a shard; see `Tries`."""
        return self.path / "tries"

    def forget(self, shard: int) -> None:
        """The driver has a shard's outcome: it will not be tried again in this run."""
        # Not an error: a try of a lost worker may still be writing here. The whole folder goes in the end.
        shutil.rmtree(self.tries / f"{shard:08d}", ignore_errors=True)


@contextmanager
def run_folder(root: Path) -> Iterator[RunFolder]:
    """A new run of the output folder `root`, for the time of the block; the caller holds the folder's lock.

    Raises:
        UserError: the output can't be written.
    """
    runs = root / "_runs"
    shutil.rmtree(runs, ignore_errors=True)  # of killed runs; what stays is never read
    path = runs / uuid.uuid4().hex
    with writing(path):
        path.mkdir(parents=True)
    try:
        yield RunFolder(path)
    finally:
        shutil.rmtree(runs, ignore_errors=True)
