"""What a driver does while shards come back: log each, collect those given up, stop where going on makes no sense."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.artifact.artifact import Artifact
from pipeline.cluster.device import Placement
from pipeline.cluster.outcomes import Status
from pipeline.cluster.run_folder import RunFolder
from pipeline.cluster.stopping import StopRequest, stop_on_signals
from pipeline.errors import UserError
from pipeline.storage.files import append_line

MAX_FAILED_SHARDS = 10
_JSON_COLUMNS = ("seconds", "reasons")


@dataclass
class Followed:
    """How a run of shards ended."""

    done: int = 0  # shards committed
    failures: dict[int, str] = field(default_factory=dict)  # shards that were given up, with the reason
    stopped_by: int | None = None  # signal number


def follow(
    artifact: Artifact,
    folder: RunFolder,
    outcomes: Callable[[StopRequest], Iterable[dict[str, Any]]],
    take: Callable[[dict[str, Any], StopRequest], None],
    placement: Placement,
    say: Callable[[str], None],
) -> Followed:
    """Drain the outcomes of shards, each a row with `shard`, `status`, `failure` and counts.

    Args:
        artifact: that the shards are committed to; gets a JSON line a shard in `_log.jsonl`.
        folder: of this run.
        outcomes: starts the work and yields rows as shards finish.
        take: sees each committed shard's row; may ask to stop.
        placement: of the workers, to tell when they compute elsewhere.
        say: takes one line for the user.

    Raises:
        UserError: bad input that no shard can escape, or more than 10 shards given up.
    """
    run = Followed()
    refused: str | None = None
    notes: set[str] = set()
    with stop_on_signals(folder.stop_file, say) as stop:
        for outcome in outcomes(stop):
            status = Status(outcome["status"])
            if status is Status.STOPPED:
                continue
            if status is Status.REFUSED:
                refused = refused or outcome["failure"]
                stop.make()
                continue
            append_line(artifact.root / "_log.jsonl", _log_line(outcome))
            folder.forget(outcome["shard"])
            if status is Status.COMMITTED:
                run.done += 1
                note = placement.note(outcome["device"])
                if note and note not in notes:
                    notes.add(note)
                    say(note)
                take(outcome, stop)
                continue
            failure = outcome["failure"]
            run.failures[outcome["shard"]] = failure
            say(f"shard {outcome['shard']:08d} is given up: {failure.splitlines()[0]}")
            if len(run.failures) > MAX_FAILED_SHARDS:
                stop.make()
        run.stopped_by = stop.signal_number
    if refused is not None:
        raise UserError(refused)
    if len(run.failures) > MAX_FAILED_SHARDS:
        last = run.failures[max(run.failures)].splitlines()[0]
        raise UserError(
            f"{len(run.failures)} shards failed after all retries, the last in {last}; their tracebacks are in "
            f"{artifact.root / '_log.jsonl'}; run the same command again when it is mended"
        )
    return run


def _log_line(outcome: dict[str, Any]) -> str:
    line = {"time": round(time.time(), 3), **{name: value for name, value in outcome.items() if value is not None}}
    return json.dumps({n: json.loads(v) if n in _JSON_COLUMNS else v for n, v in line.items()}, sort_keys=True)
