"""What the processes of one run leave each other in the output: the request to stop, and the tries of shards.

Every run has a folder of its own, so what a killed run left can't be taken for a word of this one, and what workers of
a killed run still write (they can outlive their driver by seconds) is not read. Small files, each written whole.
"""

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifact.ledger import store_of
from pipeline.errors import UserError
from pipeline.storage import Store

_RUNS = "_runs/"
_TRIES = "tries/"
_STAGES = ("read", "encode", "write")  # in the order in which a shard goes through them


@dataclass(frozen=True)
class Tries:
    """The tries of one piece of work, a file each, which outlive the process that made them.

    A file holds why its try failed; as long as nobody says otherwise, that its process died.
    """

    store: Store
    prefix: str  # of the keys, which end in the number of the try

    def failures(self) -> list[str]:
        """Why the earlier tries failed."""
        found: list[str] = []
        while True:
            try:
                found.append(self.store.read(self._key(len(found))).decode())
            except FileNotFoundError:
                return found

    def note(self, number: int, failure: str) -> None:
        """Say why try `number` failed, or, as it begins, why it will have failed if nothing else is said.

        Raises:
            UserError: the output can't be written.
        """
        self.store.put(self._key(number), failure.encode())

    def forget(self) -> None:
        """The work is done: a later try counts from zero."""
        for number in range(len(self.failures())):
            self.store.delete(self._key(number))

    def _key(self, number: int) -> str:
        return f"{self.prefix}-{number}"


@dataclass(frozen=True)
class TriesFolder:
    """Where the tries of a run are kept."""

    store: Store
    prefix: str = ""

    def of_shard(self, shard: int, stage: str) -> Tries:
        """The tries of a stage on a shard."""
        return Tries(self.store, f"{self._folder(shard)}{stage}")

    def of_load(self, actor: str) -> Tries:
        """The tries of an actor to load its model."""
        return Tries(self.store, f"{self.prefix}load/{actor}")

    def forget(self, shard: int) -> None:
        """The driver has a shard's outcome: it will not be tried again in this run."""
        _clear(self.store, self._folder(shard))

    def _folder(self, shard: int) -> str:
        return f"{self.prefix}{shard:08d}/"


@dataclass(frozen=True)
class StopFile:
    """While this file exists, workers begin no further shard."""

    store: Store
    key: str

    @property
    def is_there(self) -> bool:
        return self.store.stat(self.key) is not None

    def write(self) -> None:
        """Raises UserError where the output can't be written."""
        self.store.put(self.key, b"")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    stop_file: StopFile
    tries: TriesFolder


def in_flight(store: Store) -> dict[int, str]:
    """The shards that a run works on, or worked on when it was killed, each with the stage it came to."""
    shards: dict[int, str] = {}
    for run in store.names(_RUNS):
        for shard in store.names(f"{_RUNS}{run}{_TRIES}"):
            if not shard.removesuffix("/").isdecimal():
                continue
            stages = {name.rpartition("-")[0] for name in store.names(f"{_RUNS}{run}{_TRIES}{shard}")}
            if stages:
                shards[int(shard.removesuffix("/"))] = max(stages, key=lambda stage: (*_STAGES, stage).index(stage))
    return dict(sorted(shards.items()))


@contextlib.contextmanager
def run_folder(root: Path | Store) -> Iterator[RunFolder]:
    """A new run of the artifact at `root`, for the time of the block; the caller holds the artifact's lock."""
    store = store_of(root)
    _clear(store, _RUNS)  # of killed runs; what stays is never read
    run = f"{_RUNS}{uuid.uuid4().hex}/"
    try:
        yield RunFolder(StopFile(store, f"{run}stop"), TriesFolder(store, f"{run}{_TRIES}"))
    finally:
        _clear(store, _RUNS)


def _clear(store: Store, prefix: str) -> None:
    # What can't be removed is no error: a worker that was lost may still be writing here, and nobody reads it.
    with contextlib.suppress(UserError):
        store.clear(prefix)
