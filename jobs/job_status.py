"""How far a job is: shards done, running and failed, rate, time left, errors by reason. Changes nothing.

zoo-prune status --output out/scenes
"""

if __name__ == "__main__":  # before anything large is imported
    from jobs.leaving import leave_on_signals

    leave_on_signals()

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.console import run
from jobs.options import JobCommand, execute
from pipeline.cluster.settings import StatusSettings
from schemas.wording import clock, counted

if TYPE_CHECKING:
    from pipeline.cluster.status import JobStatus

EXAMPLES = """examples:
  <program> --output out/scenes
  <program> --output out/answers --json

It works while the job runs, after it ended and after it was killed, and for every kind of job.
"""
MAX_SHARDS_SHOWN = 10


def work(settings: StatusSettings) -> int:
    """Look, print; the exit status."""
    from pipeline.cluster.status import job_status  # here, so that --help need not wait for Arrow

    status = job_status(settings.output)
    if settings.as_json:
        print(json.dumps(asdict(status), ensure_ascii=False, sort_keys=True))
    else:
        print("\n".join(lines_of(status, time.time())))
    return 0


def lines_of(status: "JobStatus", now: float) -> list[str]:
    """What people are told."""
    total = "an unknown number of" if status.shards is None else f"{status.shards:,}"
    waiting = "" if status.shards is None else f", {_waiting(status):,} waiting"
    of = "" if status.total is None else f" of {status.total:,}"
    lines = [
        f"{status.kind} job in {status.output}: {_state(status, now)}",
        f"shards   {status.shards_done:,} of {total} done, {len(status.shards_running):,} running, "
        f"{len(status.shards_failed):,} failed{waiting}",
        f"{status.unit:<8} {status.done:,}{of}, {status.size_bytes:,} bytes",
    ]
    if status.rate is not None:
        left = "" if status.eta_sec is None else f", {clock(status.eta_sec)} left at that rate"
        lines.append(f"rate     {status.rate:.3g} {status.unit}/s since the first shard of this run{left}")
    if status.last_commit is not None:
        lines.append(f"last     a shard was committed {clock(max(0, now - status.last_commit))} ago")
    for shard, stage in list(status.shards_running.items())[:MAX_SHARDS_SHOWN]:
        lines.append(f"running  {shard:08d} in {stage}")
    for record in status.shards_failed[:MAX_SHARDS_SHOWN]:
        lines.append(f"failed   {record.shard:08d}: {record.message.splitlines()[0]}")
    if len(status.shards_failed) > MAX_SHARDS_SHOWN:
        lines.append(f"failed   {counted(len(status.shards_failed) - MAX_SHARDS_SHOWN, 'more shards')}; see _failures/")
    if status.shards_damaged:
        numbers = ", ".join(f"{shard:08d}" for shard in status.shards_damaged[:MAX_SHARDS_SHOWN])
        lines.append(f"damaged  the commit records of {numbers}; the next run does these shards again")
    lines += [f"errors   {count:,} {reason}" for reason, count in status.errors.items()]
    return [*lines, *(f"note     {note}" for note in status.notes)]


def _waiting(status: "JobStatus") -> int:
    known = status.shards_done + len(status.shards_running) + len(status.shards_failed) + len(status.shards_damaged)
    return max(0, (status.shards or 0) - known)


def _state(status: "JobStatus", now: float) -> str:
    owner = status.owner
    if owner is None:
        return str(status.state)
    who = f"process {owner.process} on {owner.host}"
    since = f"{who}, begun {clock(max(0, now - owner.began))} ago"
    return {
        "running": f"running ({since})",
        "elsewhere": f"held by {since}; from here it can't be told whether that process lives",
        "finished": "finished",
        "stopped": f"stopped: {who} was killed; run the same command again to resume",
    }[status.state]


COMMAND = JobCommand("status", StatusSettings, work, __doc__.split("\n\n")[0], EXAMPLES)


def main(arguments: list[str]) -> int:
    """Tell the status of the job with these arguments; the exit status."""
    return execute(COMMAND, arguments)


if __name__ == "__main__":
    run(COMMAND)
