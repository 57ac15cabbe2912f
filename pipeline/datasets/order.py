"""The order in which the samples of an artifact are given, as arithmetic: who gives which sample when.

sequence    all samples of an epoch, shard behind shard; a function of seed and epoch alone
share       the run of the sequence that is a rank's; shares differ by one sample at most
lane        a run of the share, in whole batches; a DataLoader worker reads some lanes, and each shard for them once
batch       batch j is the next one of lane j % lanes, so batches of several lanes are given by turns
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]
_SHARDS, _SAMPLES = 0, 1  # what a random generator decides about


class Epoch:
    """The sequence of one epoch.

    It is cut into blocks, some neighbouring shards each. The shards, and within each block its samples, are shuffled.
    """

    def __init__(self, counts: Whole, *, seed: int | None, epoch: int, block_shards: int = 1) -> None:
        """Place the shards.

        Args:
            counts: samples of each shard.
            seed: of the shuffle; None: the sequence is that of the corpus.
            epoch: decides with the seed.
            block_shards: shards a block.
        """
        self._seed, self._epoch, self._counts, self._block_shards = seed, epoch, counts, block_shards
        self._shards = np.arange(len(counts)) if seed is None else self._random(_SHARDS).permutation(len(counts))
        self._ends = np.cumsum(counts[self._shards])[_last_of_each(block_shards, len(counts))]

    def _random(self, *of: int) -> np.random.Generator:
        assert self._seed is not None, "without a seed nothing is drawn"
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, self._epoch, *of])))

    def block_at(self, place: int) -> tuple[int, int]:
        """The block in which a place of the sequence lies, and the place within the block."""
        block = int(np.searchsorted(self._ends, place, side="right"))
        return block, place - (int(self._ends[block - 1]) if block else 0)

    def shards_of(self, block: int) -> Whole:
        """Places, among the counts, of the shards of a block."""
        return self._shards[block * self._block_shards : (block + 1) * self._block_shards]

    def samples_of(self, block: int) -> Whole:
        """The samples of a block in the order of the sequence, by their places among those of its shards in a row."""
        size = int(self._counts[self.shards_of(block)].sum())
        return np.arange(size) if self._seed is None else self._random(_SAMPLES, block).permutation(size)


def _last_of_each(size: int, length: int) -> Whole:
    """Places of the last of each `size` neighbours among `length`."""
    return np.minimum(np.arange(size, length + size, size), length) - 1 if length else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Share:
    """A run of the sequence, cut into lanes and these into batches.

    All batches have `batch_size` samples but the last one of all, whatever the number of lanes.
    """

    begin: int
    end: int
    batch_size: int
    lanes: int

    @classmethod
    def of(cls, total: int, rank: int, world_size: int, *, even: bool, batch_size: int, lanes: int) -> "Share":
        """The share of one of `world_size` ranks.

        Args:
            even: all shares are equally large; of `total` samples the last `total % world_size` are nobody's.
        """
        begin, end = (n * (total // world_size) if even else n * total // world_size for n in (rank, rank + 1))
        return cls(begin, end, batch_size, lanes)

    @property
    def num_batches(self) -> int:
        """Batches of all lanes."""
        return -(-(self.end - self.begin) // self.batch_size)

    def batch(self, number: int) -> range:
        """The places of a batch in the sequence."""
        lane, turn = number % self.lanes, number // self.lanes
        full, longer = divmod(self.num_batches, self.lanes)
        before = lane * full + min(lane, longer)  # batches of the lanes before this one
        missing = self.num_batches * self.batch_size - (self.end - self.begin)  # of the last batch
        shortened = missing if lane > (self.num_batches - 1) % self.lanes else 0  # its lane lies before this one
        begin = self.begin + (before + turn) * self.batch_size - shortened
        last = number == self.num_batches - 1
        return range(begin, begin + self.batch_size - (missing if last else 0))
