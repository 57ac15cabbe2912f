"""Running the pending shards of a prune job: the Ray Data stream of stages, and when too many inputs fail."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.artifact.artifact import Artifact
from pipeline.cluster.device import Placement
from pipeline.cluster.following import Followed, follow
from pipeline.cluster.memory import SmallerBatches
from pipeline.cluster.progress import Progress
from pipeline.cluster.run_folder import RunFolder
from pipeline.cluster.session import cluster_cpus
from pipeline.cluster.stopping import StopRequest
from pipeline.cluster.stream import Stage, stream_shards
from pipeline.errors import UserError
from pipeline.prune.encode import EncodeSettings, EncodeShards
from pipeline.prune.read import ReadSettings, read_stage
from pipeline.prune.rows import Outcome
from pipeline.prune.write import WriteSettings, write_stage

DECODE_CPUS, WRITE_CPUS = 0.75, 0.25
WRITERS_A_WORKER = 2  # each is a process with its own imports; without a bound Ray starts four of them a free CPU
MIN_SAMPLES_FOR_RATE = 100


@dataclass(frozen=True)
class StreamSettings:
    """The stages' settings and how many workers they get."""

    read: ReadSettings
    encode: EncodeSettings
    write: WriteSettings
    workers: int
    placement: Placement
    max_error_rate: float


@dataclass
class Tally:
    """Counts over the committed shards of a run."""

    images: int = 0  # with a selection
    samples: int = 0
    failed_samples: int = 0
    errors: int = 0  # rows of the errors table
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count one committed shard."""
        self.images += outcome.kept
        self.samples += outcome.samples
        self.failed_samples += outcome.failed_samples
        self.errors += outcome.errors
        self.reasons.update(json.loads(outcome.reasons))


def run_shards(
    artifact: Artifact,
    folder: RunFolder,
    pending: list[int],
    num_images: int,
    settings: StreamSettings,
    say: Callable[[str], None],
    before: Tally | None = None,
) -> tuple[Followed, Tally]:
    """Prune the pending shards; returns when all are committed, given up, or a signal stopped the run.

    Args:
        artifact: that the shards are committed to.
        folder: of this run, which the settings name too.
        pending: shard numbers.
        num_images: distinct images in them, for the progress line.
        settings: of the stages.
        say: takes one line for the user.
        before: committed shards whose inputs count for the error rate as well; None: only those of this run do.

    Raises:
        UserError: too many inputs fail, too many shards fail, the output can't be written.
    """
    tally, rate = Tally(), before or Tally()
    progress = Progress(num_images, "images")
    smaller = SmallerBatches(settings.encode.batch_size, say)

    def take(row: dict[str, Any], stop: StopRequest) -> None:
        outcome = Outcome(**row)
        tally.add(outcome)
        rate.add(outcome)
        progress.add(outcome.images, outcome.errors)
        smaller.note(outcome.shard, outcome.batch_size)
        if too_many_fail(rate.failed_samples, rate.samples, settings.max_error_rate):
            stop.make()

    run = follow(artifact, folder, lambda stop: _outcomes(pending, settings, stop), take, settings.placement, say)
    if too_many_fail(rate.failed_samples, rate.samples, settings.max_error_rate):
        share = share_that_failed(rate.failed_samples, rate.samples, rate.reasons, settings.max_error_rate)
        raise UserError(f"{share}; mend the cause and run again with --redo-errors, or raise the rate")
    return run, tally


def too_many_fail(failed: int, samples: int, max_error_rate: float) -> bool:
    """Whether the share of failed input samples, once there are enough to tell, is over the limit."""
    return samples >= MIN_SAMPLES_FOR_RATE and failed > max_error_rate * samples


def share_that_failed(failed: int, samples: int, reasons: Counter[str], max_error_rate: float) -> str:
    """Which share of the inputs failed and why: the beginning of what tells why the job stops."""
    most = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
    return f"{failed:,} of the first {samples:,} inputs failed, more than --max-error-rate {max_error_rate:g}: {most}"


def worker_cpus(workers: int, cpus: int) -> float:
    """CPUs a model actor reserves: one, or less where decoding and writing would find none left and wait for ever."""
    share = min(1.0, max(0.01, (cpus - DECODE_CPUS - WRITE_CPUS) / workers))
    # Stages with the same share of a CPU would be fused into one task and no longer overlap.
    return share - 0.01 if share in (DECODE_CPUS, WRITE_CPUS) else share


def _outcomes(pending: list[int], settings: StreamSettings, stop: StopRequest) -> Iterator[dict[str, Any]]:
    """Rows of `pipeline.prune.rows.OUTCOME`, as shards finish."""
    workers = settings.workers
    model = Stage(
        EncodeShards,
        settings.encode,
        num_cpus=worker_cpus(min(workers, len(pending)), cluster_cpus()),
        processes=workers,
        num_gpus=settings.placement.gpus_per_worker,
    )
    return stream_shards(
        pending,
        [
            Stage(read_stage, settings.read, DECODE_CPUS),
            model,
            Stage(write_stage, settings.write, WRITE_CPUS, processes=WRITERS_A_WORKER * workers),
        ],
        stop,
    )
