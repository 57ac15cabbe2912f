"""What a corpus holds, found before a job by looking at some of its samples, or at all; writes nothing.

A sample of the corpus is the first samples of evenly spread pieces of each kind of input. What is counted in them is
multiplied by the share of the pieces that was looked at, in the positions that the readers count in.
"""

import random
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from pipeline.corpus.questions import Pairing
from pipeline.corpus.reading import Reading
from pipeline.corpus.resolve import CorpusInput
from pipeline.corpus.sample import ScanUnit
from pipeline.corpus.scan import scan, scan_units
from pipeline.storage.input_file import InputReadError
from schemas.samples import Sample
from schemas.statuses import OK

MAX_UNITS = 32  # of each kind of input that a sample is taken from
MAX_KEPT = 4096  # samples that are kept as they are, for measurements


@dataclass
class Counts:
    """What was found, or what is thought to be there in all."""

    samples: float = 0
    images: float = 0  # distinct; of a sample at most so many, since it does not see what is repeated far away
    usable: float = 0  # of them, whose header can be read
    prompts: float = 0
    failed_samples: float = 0
    # by reason: samples, and prompts that fail by themselves
    failed: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Counts", times: float = 1.0) -> None:
        """Add what was found elsewhere, so many times."""
        self.samples += other.samples * times
        self.images += other.images * times
        self.usable += other.usable * times
        self.prompts += other.prompts * times
        self.failed_samples += other.failed_samples * times
        for reason, count in other.failed.items():
            self.failed[reason] += count * times


@dataclass
class Census:
    """What a corpus holds."""

    whole: bool  # every sample was looked at
    seen: Counts
    total: Counts
    prepared: "array[int]"  # bytes of the prepared pixels of each distinct image that was seen
    kept: list[Sample]  # some of the samples that were seen, in their order
    seconds: float  # that the scan took, in one process
    unread: dict[str, str]  # inputs that the storage does not give, which the job leaves out, with the reason
    records: int  # samples that were seen with a record in which prompts are looked for
    named: Counter[str]  # of them, with each column that the user names for prompts
    pairs: list[Pairing]  # files of questions and annotations, as far as they were seen


def take_census(
    inputs: Sequence[CorpusInput],
    prepared_bytes: Callable[[int, int], int],
    *,
    count: int,
    limit: int | None,
    reading: Reading,
) -> Census:
    """Look at about `count` samples of the corpus, or at all of them.

    Args:
        inputs: of the corpus.
        prepared_bytes: of width and height of an image: what its prepared pixels take.
        count: samples to look at; 0 for all.
        limit: the job takes only the first samples.
        reading: what the user says of the corpus.

    Raises:
        UserError: an input is of another form than its name says.
    """
    began = time.perf_counter()
    pairs = {n: Pairing(item.path, item.partner) for n, item in enumerate(inputs) if item.partner is not None}
    looking = _Looking(prepared_bytes, reading, pairs)
    units = scan_units(list(inputs))
    whole = True
    if not count or (limit is not None and limit <= count):
        total = looking.seen
        looking.take_all(units, limit)
    else:
        total = Counts()
        by_kind: dict[str, list[ScanUnit]] = defaultdict(list)
        for unit in units:
            by_kind[unit.kind].append(unit)
        for some in by_kind.values():
            found, share = looking.take_some(some, -(-count // len(by_kind)))
            whole = whole and share == 1
            if share:
                total.add(found, 1 / share)
        if limit is not None and total.samples > limit:
            cut, whole = Counts(), False
            cut.add(total, limit / total.samples)
            total = cut
    seconds = time.perf_counter() - began
    return Census(
        whole,
        looking.seen,
        total,
        looking.prepared,
        looking.kept(),
        seconds,
        looking.unread,
        looking.records,
        looking.named,
        list(pairs.values()),
    )


class _Looking:
    """Goes over samples once and remembers of them what a plan needs."""

    def __init__(
        self, prepared_bytes: Callable[[int, int], int], reading: Reading, pairs: Mapping[int, Pairing]
    ) -> None:
        self.seen = Counts()
        self.prepared = array("q")
        self.unread: dict[str, str] = {}
        self._prepared_bytes = prepared_bytes
        self._reading, self._pairs = reading, pairs
        self.records = 0
        self.named: Counter[str] = Counter()
        self._image_ids: set[bytes] = set()
        self._kept: list[tuple[int, Sample]] = []
        self._noted = 0
        self._random = random.Random(0)

    def take_all(self, units: Sequence[ScanUnit], limit: int | None) -> None:
        """Every sample, or the first `limit`."""
        for unit in units:
            left = None if limit is None else limit - int(self.seen.samples)
            if left == 0:
                return
            if unit.path not in self.unread:
                for sample in islice(self._samples(unit), left):
                    self._note(sample, self.seen)

    def take_some(self, units: Sequence[ScanUnit], count: int) -> tuple[Counts, float]:
        """About `count` samples of inputs of one kind; what they are, and the share of the inputs that was seen."""
        found = Counts()
        chosen = _spread(units, MAX_UNITS)
        covered = 0.0
        for unit in chosen:
            covered += self._take_first(unit, -(-count // len(chosen)), found)
        self.seen.add(found)
        readable = sum(_weight(unit) for unit in units if unit.path not in self.unread)
        return found, min(1.0, covered / readable) if readable else 0.0

    def _take_first(self, unit: ScanUnit, count: int, found: Counts) -> float:
        """The first samples of a unit; how much of the unit they are."""
        samples = self._samples(unit)
        for sample in islice(samples, count):
            self._note(sample, found)
        if unit.path in self.unread:
            return 0.0
        for following in samples:
            share = (following.sample - unit.begin) / _weight(unit)
            if 0 < share <= 1:
                return share * _weight(unit)
            self._note(following, found)  # it does not count in the bytes of its file: all of it is looked at
        return _weight(unit)

    def _samples(self, unit: ScanUnit) -> Iterator[Sample]:
        try:
            yield from scan(unit, reading=self._reading)
        except InputReadError as error:
            self.unread[unit.path] = str(error)

    def _note(self, sample: Sample, found: Counts) -> None:
        found.samples += 1
        found.prompts += len(sample.prompts)
        if sample.named is not None:
            self.records += 1
            self.named.update(sample.named)
        if sample.input in self._pairs:
            self._pairs[sample.input].add(sample.prompts, self._reading)
        reason = sample.reason or _seen_in_header(sample)
        if reason is not None:
            found.failed[reason] += 1
            found.failed_samples += 1
        else:
            for prompt in sample.prompts:
                if prompt.status != OK:
                    found.failed[prompt.status] += 1
        if sample.image_id is not None and sample.reason is None:
            digest = bytes.fromhex(sample.image_id)
            if digest not in self._image_ids:
                self._image_ids.add(digest)
                found.images += 1
                found.usable += reason is None
                self.prepared.append(self._prepared(sample))
        self._keep(sample)

    def _prepared(self, sample: Sample) -> int:
        if sample.width is None or sample.height is None:
            return 0
        return self._prepared_bytes(sample.width, sample.height)

    def _keep(self, sample: Sample) -> None:
        """Keep the first samples, then each further one with the probability that leaves a fair sample of all."""
        self._noted += 1
        if len(self._kept) < MAX_KEPT:
            self._kept.append((self._noted, sample))
        elif (place := self._random.randrange(self._noted)) < MAX_KEPT:
            self._kept[place] = self._noted, sample

    def kept(self) -> list[Sample]:
        return [sample for _, sample in sorted(self._kept, key=lambda one: one[0])]


def _seen_in_header(sample: Sample) -> str | None:
    """The reason for which an image will fail as far as its first bytes tell; None where they tell nothing."""
    if sample.size == 0:
        return "empty_file"
    return "unreadable_image" if sample.width is None else None


def _weight(unit: ScanUnit) -> int:
    return max(1, unit.end - unit.begin)


def _spread(units: Sequence[ScanUnit], most: int) -> list[ScanUnit]:
    """Up to `most` of the units, evenly spread over what they hold."""
    if len(units) <= most:
        return list(units)
    whole = sum(map(_weight, units))
    chosen: list[ScanUnit] = []
    reached = 0
    for unit in units:
        before, reached = reached, reached + _weight(unit)
        if int(before * most / whole) != int(reached * most / whole) or not chosen:
            chosen.append(unit)
    return chosen
