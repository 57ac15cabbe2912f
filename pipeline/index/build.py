"""Stage 0: every sample of the corpus scanned and hashed in parallel, then each given to a shard (`assign`)."""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.index import (
    FOLDER,
    Generation,
    Index,
    IndexedInput,
    write_index,
)
from pipeline.cluster.session import cluster_cpus
from pipeline.cluster.stream import Stage, run_on_worker, stream_items
from pipeline.corpus.questions import Pairing
from pipeline.corpus.reading import Reading
from pipeline.corpus.resolve import CorpusInput, common_root
from pipeline.corpus.sample import ScanUnit
from pipeline.corpus.scan import scan, scan_units
from pipeline.errors import UserError
from pipeline.index.assign import PixelBound, assign_shards
from pipeline.index.drawing import Draw, draw_images
from pipeline.storage import Store
from pipeline.storage.input_file import InputReadError
from schemas.columns import column, table_of
from schemas.samples import Sample
from schemas.tables import SCAN
from schemas.wording import counted

SHARDS_PER_FILE = 64
SCAN_BATCH_ROWS = 8192
_SCAN = f"{FOLDER}scan/"  # samples found, a file a unit; there while an index is made


@dataclass(slots=True, kw_only=True)
class UnitOutcome:
    """What the driver learns of a unit that was scanned."""

    input: int = column(pa.int32())  # number of the input file
    samples: int = column(pa.int64(), default=0)
    asked: int = column(pa.int64(), default=0)  # of an input that is a pair, see `pipeline.corpus.questions.Pairing`
    answered: int = column(pa.int64(), default=0)
    failure: str | None = column(pa.string(), default=None)  # why the job must end
    unread: str | None = column(pa.string(), default=None)  # why the input is left out


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """Where a scan puts the samples of each unit, and how many it wants of one at most."""

    store: Store
    prefix: str
    limit: int | None
    reading: Reading = Reading()


def extend_index(
    store: Store,
    index: Index | None,
    inputs: Sequence[CorpusInput],
    *,
    shard_size: int,
    limit: int | None,
    sample: Draw | None = None,
    bound: PixelBound | None = None,
    reading: Reading = Reading(),  # noqa: B008  # it does not change
    shards_per_file: int = SHARDS_PER_FILE,
    say: Callable[[str], None] = lambda _: None,
) -> Index:
    """Scan `inputs` with Ray, assign their images to new shards, write the new files and `index.json`.

    An input whose storage does not give its bytes is left out as a whole and marked, see `Index.left_out`.

    Args:
        store: of the artifact.
        index: what is there already, or None.
        inputs: input files not indexed yet, in corpus order.
        shard_size: distinct images a shard at most.
        limit: index only the first samples of the corpus (all inputs must be new then).
        sample: index only the images that are drawn (all inputs must be new then).
        bound: of the shards' pixels; None: only `shard_size` counts.
        reading: what the user says of the corpus.
        shards_per_file: how many shards share a file of the index.
        say: takes one line for the user.

    Raises:
        UserError: no input can be read or holds a sample; with a limit, one can't be read.
    """
    old = [g for g in index.generations if g.num_shards] if index else []  # without those of inputs that were left out
    first_input = sum(len(g.inputs) for g in old)
    corpus_root = old[0].corpus_root if old else common_root(inputs)
    store.clear(_SCAN)
    # A folder of its own, which no worker of an older, killed run can still write to.
    settings = ScanSettings(store, f"{_SCAN}{uuid.uuid4().hex}/", limit, reading)
    unread, samples, pairs = _scan_all(scan_units(list(inputs), first_input, corpus_root), settings)
    wrong = next((pair for pair in pairs if pair.is_wrong), None)
    if wrong is not None and limit is None:
        raise UserError(wrong.refusal())
    for note in filter(None, (pair.note() for pair in pairs)):
        say(note)
    without = [inputs[number - first_input].path for number, found in samples.items() if not found]
    if without and any(samples.values()):  # else the job ends, with a sentence of its own
        others = f" and {counted(len(without) - 1, 'other inputs')}" if len(without) > 1 else ""
        say(
            f"{without[0]}{others}: no sample in it: a tar of nothing but zeros, a table without rows, or a manifest "
            "without lines"
        )
    if unread and (limit is not None or (index is None and len(unread) == len(inputs))):
        raise UserError(f"--corpus: {next(iter(unread.values()))}; nothing was indexed: mend it and run again")
    new = Generation.of_nothing(
        corpus_root,
        [
            IndexedInput(item.path, item.kind, item.size_bytes, unread.get(number))
            for number, item in enumerate(inputs, start=first_input)
        ],
        first_input=first_input,
        first_shard=sum(g.num_shards for g in old),
        first_file=sum(g.num_files for g in old),
        shards_per_file=shards_per_file,
    )
    if len(unread) < len(inputs):
        units = [entry.key for entry in store.list(settings.prefix)]
        if sample is not None:
            units = run_on_worker(draw_images, store, units, sample, limit)
            limit = None  # what is left are samples of the first
        parts = index.parts() if index else []
        new = run_on_worker(assign_shards, store, units, parts, new, shard_size=shard_size, limit=limit, bound=bound)
    extended = Index(store, [*old, new])
    write_index(extended)
    store.clear(_SCAN)
    return extended


def _scan_all(units: list[ScanUnit], settings: ScanSettings) -> tuple[dict[int, str], Counter[int], list[Pairing]]:
    """Scan the units in parallel; with a limit in waves, until enough samples are found.

    Returns:
        the numbers of the inputs that can't be read, with the reason; no file of theirs stays behind. The samples in
        each of the other inputs that were scanned. And what pairs of files have in common.
    """
    wave = len(units) if settings.limit is None else max(8, 2 * cluster_cpus())
    samples: Counter[int] = Counter()
    unread: dict[int, str] = {}
    pairs = {unit.input: Pairing(unit.path, unit.partner) for unit in units if unit.partner is not None}
    for begin in range(0, len(units), wave):
        items = [{"number": n, **asdict(unit)} for n, unit in enumerate(units[begin : begin + wave], start=begin)]
        for row in stream_items(items, [Stage(_scan_stage, settings, num_cpus=1)]):
            outcome = UnitOutcome(**row)
            if outcome.failure is not None:
                raise UserError(outcome.failure)
            if outcome.unread is not None:
                unread.setdefault(outcome.input, outcome.unread)
            samples[outcome.input] += outcome.samples
            if outcome.input in pairs:
                pairs[outcome.input].asked += outcome.asked
                pairs[outcome.input].answered += outcome.answered
        if settings.limit is not None and samples.total() >= settings.limit:
            break
    for number, unit in enumerate(units):
        if unit.input in unread:
            settings.store.delete(_unit_key(settings.prefix, number))
    readable = Counter({number: found for number, found in samples.items() if number not in unread})
    return unread, readable, list(pairs.values())


def _unit_key(prefix: str, number: int) -> str:
    return f"{prefix}unit-{number:08d}.parquet"


def _scan_stage(batch: pa.Table, settings: ScanSettings) -> pa.Table:
    """Scan one unit into a Parquet file of its own; bad input travels as data, Ray would bury it in tracebacks."""
    (item,) = batch.to_pylist()
    key = _unit_key(settings.prefix, item.pop("number"))
    unit = ScanUnit(**item)
    outcome = UnitOutcome(input=unit.input)
    try:
        _scan_unit(unit, key, settings, outcome)
    except UserError as error:
        outcome.failure = str(error)
    except InputReadError as error:
        outcome.unread = str(error)
    return table_of(UnitOutcome, [outcome])


def _scan_unit(unit: ScanUnit, key: str, settings: ScanSettings, outcome: UnitOutcome) -> None:
    last = -1
    pairing = Pairing(unit.path, unit.partner or "")
    samples = scan(unit, settings.limit, settings.reading)
    with settings.store.new_file(key) as new, pq.ParquetWriter(new.path, SCAN) as writer:
        while some := list(islice(samples, SCAN_BATCH_ROWS)):
            for sample in some:
                assert sample.sample > last, "readers give samples in the order of their positions"
                last = sample.sample
                if unit.partner is not None:
                    pairing.add(sample.prompts, settings.reading)
            writer.write_table(table_of(Sample, some))
            outcome.samples += len(some)
    outcome.asked, outcome.answered = pairing.asked, pairing.answered
