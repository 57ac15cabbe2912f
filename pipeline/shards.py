"""Running the pending shards of a prune job: the Ray Data stream of stages, and when too many inputs fail."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from pipeline.artifact import Artifact
from pipeline.encode import EncodeSettings, EncodeShards
from pipeline.errors import UserError
from pipeline.following import Followed, follow
from pipeline.progress import Progress
from pipeline.read import ReadSettings, read_stage
from pipeline.runtime import map_shards
from pipeline.stopping import StopRequest
from pipeline.write import WriteSettings, write_stage

SHARDS_A_STREAM = 1000  # bounds what Ray keeps about finished blocks; actors start anew for each stream
MIN_SAMPLES_FOR_RATE = 100


@dataclass(frozen=True)
class StreamSettings:
    """The stages' settings and how many workers they get."""

    read: ReadSettings
    encode: EncodeSettings
    write: WriteSettings
    workers: int
    gpus_per_worker: float
    max_error_rate: float


@dataclass
class Tally:
    """Counts over the committed shards of a run."""

    images: int = 0  # with a selection
    samples: int = 0
    failed_samples: int = 0
    errors: int = 0  # rows of the errors table
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: dict[str, Any]) -> None:
        """Count one committed shard, a row of `pipeline.write.OUTCOME`."""
        self.images += outcome["kept"]
        self.samples += outcome["samples"]
        self.failed_samples += outcome["failed_samples"]
        self.errors += outcome["errors"]
        self.reasons.update(json.loads(outcome["reasons"]))


def run_shards(
    artifact: Artifact, pending: list[int], num_images: int, settings: StreamSettings, say: Callable[[str], None]
) -> tuple[Followed, Tally]:
    """Prune the pending shards; returns when all are committed, given up, or a signal stopped the run.

    Args:
        artifact: that the shards are committed to.
        pending: shard numbers.
        num_images: distinct images in them, for the progress line.
        settings: of the stages.
        say: takes one line for the user.

    Raises:
        UserError: too many inputs fail, too many shards fail, the output can't be written.
    """
    tally = Tally()
    progress = Progress(num_images, "images")

    def take(outcome: dict[str, Any], stop: StopRequest) -> None:
        tally.add(outcome)
        progress.add(outcome["images"], outcome["errors"])
        if too_many_fail(tally.failed_samples, tally.samples, settings.max_error_rate):
            stop.make()

    run = follow(artifact, lambda stop: _outcomes(pending, settings, stop), take, say)
    if too_many_fail(tally.failed_samples, tally.samples, settings.max_error_rate):
        raise UserError(error_rate_message(tally.failed_samples, tally.samples, tally.reasons, settings.max_error_rate))
    return run, tally


def too_many_fail(failed: int, samples: int, max_error_rate: float) -> bool:
    """Whether the share of failed input samples, once there are enough to tell, is over the limit."""
    return samples >= MIN_SAMPLES_FOR_RATE and failed > max_error_rate * samples


def error_rate_message(failed: int, samples: int, reasons: Counter[str], max_error_rate: float) -> str:
    """Why the job stopped, and how to go on."""
    most = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
    return (
        f"{failed:,} of the first {samples:,} inputs failed, more than --max-error-rate {max_error_rate:g}: {most}; "
        "mend the cause and run again with --redo-errors, or raise the rate"
    )


def _outcomes(pending: list[int], settings: StreamSettings, stop: StopRequest) -> Iterator[dict[str, Any]]:
    """Rows of `pipeline.write.OUTCOME`, as shards finish."""
    for begin in range(0, len(pending), SHARDS_A_STREAM):
        if stop.made:
            return
        shards = pending[begin : begin + SHARDS_A_STREAM]
        numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        # Decode, model and write ask for different shares of a CPU: equal ones would be fused and no longer overlap.
        decoded = map_shards(numbers, read_stage, num_cpus=0.75, fn_args=(settings.read,))
        encoded = map_shards(
            decoded,
            EncodeShards,
            compute=ActorPoolStrategy(size=min(settings.workers, len(shards))),
            num_cpus=1,
            num_gpus=settings.gpus_per_worker or None,
            fn_constructor_args=(settings.encode,),
        )
        yield from map_shards(encoded, write_stage, num_cpus=0.25, fn_args=(settings.write,)).iter_rows()
