"""A pruned artifact as a PyTorch dataset: shared out among ranks and workers, shuffled, resumed at any sample.

dataset = PrunedDataset("out/photos", tokens="64", batch_size=32, collate=Collate(), shuffle=True)
for batch in PrunedLoader(dataset, num_workers=4): ...
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.datasets.order import Epoch, Share
from pipeline.datasets.source import Source, open_source
from pipeline.errors import UserError
from pipeline.families.base import KeptImage
from pipeline.storage import LocalStore
from schemas.stored import StoredPrompt
from schemas.wording import counted

_FORM = 1  # of states


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt that can be posed, and its image at the budget that was asked for."""

    prompt: StoredPrompt
    image: KeptImage  # the same object for all prompts of a shard that are about it


class PrunedDataset(IterableDataset[Any]):
    """The prompts of an artifact with their kept features, a batch or a sample at a time.

    The order is a function of the artifact, the seed, the epoch, the rank, the lanes and the batch size, and of
    nothing else: with `lanes` given, any number of workers that divides it gets the same batches in the same order.
    Ranks, and workers within a rank, get disjoint shares which together are everything.

    A pass gives the epoch in which the dataset stands, from where it was told to begin; the pass behind a complete one
    gives the next epoch. Where a plain `DataLoader` makes copies of the dataset for its workers, the original learns
    nothing of what they give, so `set_epoch` is called before each pass, as for torch's `DistributedSampler`;
    `PrunedLoader` sees to it by itself.
    """

    def __init__(
        self,
        pruned: str,
        *,
        tokens: str | float = "all",
        min_tokens: int = 1,
        dtype: torch.dtype | str | None = "model",
        batch_size: int | None = None,
        collate: Callable[[Sequence[Sample]], Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        block_shards: int = 1,
        lanes: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        even: bool = False,
    ) -> None:
        """Open the artifact, which is read whole in its small files only: commit records, and gains for `mean:`.

        Args:
            pruned: folder or address (`s3://BUCKET/KEY`) of a finished prune job's output.
            tokens: of each image, as --tokens of the answer job: `64`, `0.125`, `all`, `mean:64`, `gain:0.2`.
            min_tokens: of each image, where tokens are a mean or a gain.
            dtype: of the features; `model`: the one the model had when it pruned; None: as stored, int8 as float32.
            batch_size: samples a batch; None: samples are given one by one.
            collate: makes of a batch's samples what is given; None: the list of them.
            shuffle: the shards, and the samples of each block of shards.
            seed: of the shuffle.
            block_shards: shards whose samples are mixed with each other; so many are in memory for each lane.
            lanes: runs of the rank's share that are given by turns, a batch each. The number of workers must divide it.
                None: as many as there are workers, and the order then depends on their number.
            rank: of this process; None: torch.distributed's, which must have begun; 0 without it.
            world_size: number of ranks; None: torch.distributed's, 1 without it.
            even: give every rank equally many samples, so that none waits for another at the end; up to
                `world_size - 1` samples of an epoch are then given to none.

        Raises:
            UserError: bad arguments, or an artifact that can't be read from, see `open_source`.
        """
        if (rank is None) != (world_size is None):
            raise UserError(f"rank {rank} of world_size {world_size}: give both, or neither and let torch tell them")
        self._finds_ranks = rank is None
        self._rank, self._world_size = _ranks() if rank is None or world_size is None else (rank, world_size)
        if not 0 <= self._rank < self._world_size:
            raise UserError(f"rank {rank} of world_size {world_size}: ranks count from 0")
        for name, value in (("batch_size", batch_size), ("block_shards", block_shards), ("lanes", lanes)):
            if value is not None and value < 1:
                raise UserError(f"{name} {value}: expected 1 or more")
        if collate is not None and batch_size is None:
            raise UserError("collate makes batches of samples: give batch_size too")
        self._source = open_source(pruned, tokens=tokens, min_tokens=min_tokens, dtype=dtype)
        self._min_tokens, self._batch_size, self._collate = min_tokens, batch_size, collate
        self._shuffle, self._seed, self._block_shards = shuffle, seed, block_shards
        self._lanes, self._has_own_lanes, self._even = lanes, lanes is not None, even
        self._epoch, self._start = 0, 0  # with which batch of which epoch a pass begins
        self._given = 0  # batches of its pass that this copy has given
        self._of: tuple[int, int] | None = None  # the worker that the copy is in, and of how many; None: of none
        self._ahead = False  # the next pass goes on behind what was given, which another copy gave
        self._is_done = False  # all of the epoch was given
        self._was_sent = False  # this copy came to its process by being sent, not by a fork

    @property
    def source(self) -> Source:
        """What is read from."""
        return self._source

    @property
    def batch_size(self) -> int | None:
        """Samples a batch; None: samples are given one by one."""
        return self._batch_size

    @property
    def epoch(self) -> int:
        """That the next pass gives, or the rest of which."""
        return self._epoch + self._is_done

    def __len__(self) -> int:
        """Batches, or samples, of this rank in a whole epoch."""
        return self._share(1).num_batches

    def set_epoch(self, epoch: int) -> None:
        """Stand at the beginning of an epoch. Where the dataset stands in it already, nothing happens."""
        if epoch != self._epoch or self._is_done:
            self._stand(epoch, 0)

    def _stand(self, epoch: int, start: int) -> None:
        self._epoch, self._start = epoch, start
        self._given, self._of, self._ahead, self._is_done = 0, None, False, False

    def state_dict(self) -> dict[str, Any]:
        """Where this copy stands, which is behind what it gave last, as JSON can hold it."""
        return {
            "form": _FORM,
            "epoch": self._epoch,
            "start": self._start,
            "given": self._given,
            "worker": None if self._of is None else list(self._of),
            "order": self._order(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where a dataset stood that gives the same samples in the same order.

        Raises:
            UserError: it gives others, or in another order; says what differs.
        """
        if state.get("form") != _FORM:
            raise UserError("this is no state of a PrunedDataset, or one of another version; begin the epoch anew")
        known = state["order"]
        if not self._has_own_lanes:
            self._lanes = known["lanes"]
        mine = self._order()
        differences = [f"{name}: {known[name]!r} -> {mine[name]!r}" for name in mine if known[name] != mine[name]]
        if differences:
            raise UserError(
                f"the state is of a dataset that gives other samples, or in another order ({'; '.join(differences)}); "
                "open the dataset as that one was opened, or begin the epoch anew"
            )
        if state["worker"] in (None, [0, 1]):
            self._stand(state["epoch"], state["start"] + state["given"])
        else:
            self._stand(state["epoch"], state["start"])
            self._given, self._of, self._ahead = state["given"], tuple(state["worker"]), True

    def _order(self) -> dict[str, Any]:
        """What decides, beside the epoch, which samples this rank gives and when."""
        return {
            "artifact": self._source.sha256,
            "tokens": self._source.tokens,
            "min_tokens": self._min_tokens,
            "dtype": str(self._source.dtype),
            "batch_size": self._batch_size,
            "seed": self._seed if self._shuffle else None,
            "block_shards": self._block_shards,
            "lanes": self._lanes or (self._of[1] if self._of is not None else 1),
            "rank": self._rank,
            "world_size": self._world_size,
            "even": self._even,
        }

    def share_lanes(self, num_workers: int) -> None:
        """Settle the lanes for so many workers, unless they were asked for or are those of a state."""
        self._lanes = self._lanes or max(1, num_workers)

    def _share(self, lanes: int) -> Share:
        total = int(self._source.counts.sum())
        return Share.of(
            total, self._rank, self._world_size, even=self._even, batch_size=self._batch_size or 1, lanes=lanes
        )

    def check_ranks(self) -> None:
        """Refuse to give another rank's share: torch.distributed began after the dataset was opened."""
        if self._finds_ranks and (now := _ranks()) != (self._rank, self._world_size):
            raise UserError(
                f"this process is rank {now[0]} of {now[1]}, and was rank {self._rank} of {self._world_size} when the "
                "dataset was opened; open it after torch.distributed.init_process_group, or give rank and world_size"
            )

    def begin(self) -> None:
        """Begin a pass: go on with the next epoch if all of this one was given."""
        if self._is_done:
            self._stand(self._epoch + 1, 0)
        elif not self._ahead:
            self._given = 0

    def reach(self, number: int | None) -> None:
        """Note that batch `number` of the epoch was given last, by whomever; None: all of it was."""
        if number is None:
            self._is_done = True
        else:
            self._given = number + 1 - self._start

    def __iter__(self) -> Iterator[Any]:
        """Give the rest of the epoch; in a worker of a `DataLoader` what of it is the worker's."""
        return (given for _, given in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """As `iter`, with the number of each batch in the rank's epoch. Where the pass begins is settled by the call.

        Raises:
            UserError: the workers can't share the lanes, or this one can't read from the artifact.
        """
        info = get_worker_info()
        worker = (0, 1) if info is None else (info.id, info.num_workers)
        if info is not None and not self._was_sent and not isinstance(self._source.store, LocalStore):
            raise UserError(
                f"{self._source.address} can't be read from a forked process, which the library that reads buckets "
                "does not survive; give the DataLoader multiprocessing_context='spawn'"
            )
        if info is None:
            self.check_ranks()
        if self._ahead and self._of != worker:
            assert self._of is not None, "only a worker's state is ahead"
            raise UserError(
                f"the state is that of worker {self._of[0]} of {self._of[1]}, and this is worker {worker[0]} of "
                f"{worker[1]}; hand each worker its own state, or resume from the state of a PrunedLoader"
            )
        number, workers = worker
        lanes = self._lanes or workers
        if lanes % workers:
            raise UserError(
                f"num_workers={workers}: so many can't share {counted(lanes, 'lanes')}; ask for a number that divides "
                f"{lanes}, or open the dataset with other lanes"
            )
        self.begin()
        self._of, self._ahead = worker, False
        share = self._share(lanes)
        turns = range(self._start + number, share.num_batches, workers)
        read = _Blocks(self._source, self._epoch_order(), most=lanes // workers)
        return self._pass(turns, self._given, share, read)

    def _pass(self, turns: range, given: int, share: Share, read: "_Blocks") -> Iterator[tuple[int, Any]]:
        """The batches whose turn it is, without as many as were given."""
        for count, number in enumerate(turns[given:], start=given + 1):
            samples = [sample for place in share.batch(number) if (sample := read.sample(place)) is not None]
            self._given = count
            if not samples:
                continue
            if self._batch_size is None:
                yield number, samples[0]
            else:
                yield number, samples if self._collate is None else self._collate(samples)
        self._is_done = True

    def _epoch_order(self) -> Epoch:
        seed = self._seed if self._shuffle else None
        return Epoch(self._source.counts, seed=seed, epoch=self._epoch, block_shards=self._block_shards)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_was_sent": True}


def _ranks() -> tuple[int, int]:
    """Rank and number of ranks, as torch.distributed has them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class _Blocks:
    """The samples of an epoch by their places, with the blocks in memory that were used last."""

    def __init__(self, source: Source, order: Epoch, most: int) -> None:
        self._source, self._order, self._most = source, order, most
        self._held: OrderedDict[int, list[Sample | None]] = OrderedDict()

    def sample(self, place: int) -> Sample | None:
        """The sample at a place of the sequence; None where its image could not be pruned."""
        block, within = self._order.block_at(place)
        if block not in self._held:
            while len(self._held) >= self._most:
                self._held.popitem(last=False)
            samples = [sample for shard in self._order.shards_of(block).tolist() for sample in self._read(shard)]
            self._held[block] = [samples[sample] for sample in self._order.samples_of(block)]
        self._held.move_to_end(block)
        return self._held[block][within]

    def _read(self, place: int) -> list[Sample | None]:
        read = self._source.read(place)
        missing = sum(image is None for _, image in read)
        if missing:
            warnings.warn(
                f"{self._source.address}: {counted(missing, 'prompts', 'are')} left out of shard "
                f"{self._source.shards[place]:08d}, as their image could not be pruned",
                stacklevel=2,
            )
        return [None if image is None else Sample(prompt, image) for prompt, image in read]


class _Numbered(IterableDataset[tuple[int, Any]]):
    """What a dataset gives, with numbers."""

    def __init__(self, dataset: PrunedDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self._dataset.numbered()


class PrunedLoader(DataLoader[Any]):
    """A `DataLoader` over a `PrunedDataset` whose state is exact with any number of workers.

    Each pass over it gives the rest of the epoch, and the next pass the next epoch; a pass that is left begins anew.
    The state is behind the batch that was given last; what workers have read ahead is read again.
    """

    def __init__(self, dataset: PrunedDataset, num_workers: int = 0, **options: Any) -> None:
        """Wrap a dataset.

        Args:
            dataset: opened with a batch size.
            num_workers: processes that read.
            options: further ones of `DataLoader`, `pin_memory` or `prefetch_factor` for example.

        Raises:
            UserError: an option that does not go with the dataset.
        """
        if dataset.batch_size is None:
            raise UserError("the dataset gives samples one by one; open it with batch_size, and collate")
        if options.get("persistent_workers"):
            raise UserError("persistent_workers: workers begin anew with each epoch here; leave the option out")
        if num_workers and not isinstance(dataset.source.store, LocalStore):
            options.setdefault("multiprocessing_context", "spawn")
        self.pruned = dataset
        super().__init__(_Numbered(dataset), batch_size=None, num_workers=num_workers, **options)
        dataset.share_lanes(num_workers)

    def __iter__(self) -> Any:  # a generator, where `DataLoader` has a class of its own
        """Give the rest of the epoch."""
        self.pruned.check_ranks()
        self.pruned.begin()
        for number, batch in super().__iter__():
            self.pruned.reach(number)
            yield batch
        self.pruned.reach(None)

    @property
    def epoch(self) -> int:
        """See `PrunedDataset`."""
        return self.pruned.epoch

    def set_epoch(self, epoch: int) -> None:
        """See `PrunedDataset`."""
        self.pruned.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `PrunedDataset`."""
        return self.pruned.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `PrunedDataset`."""
        self.pruned.load_state_dict(state)
