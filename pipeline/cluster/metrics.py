"""Counters for the cluster's metrics system (Prometheus through Ray): what operators put on a dashboard."""

from functools import lru_cache

from ray.util.metrics import Counter

from schemas.records import CommitRecord
from schemas.statuses import failed_inputs


@lru_cache(maxsize=1)
def _counters() -> dict[str, Counter]:
    return {
        "images": Counter("zoo_prune_images", "Distinct images finished.", ("status",)),
        "errors": Counter("zoo_prune_errors", "Failed inputs.", ("reason",)),
        "seconds": Counter("zoo_prune_stage_seconds", "Seconds spent in a stage.", ("stage",)),
        "tokens": Counter("zoo_prune_tokens", "Visual tokens.", ("kind",)),
        "bytes": Counter("zoo_prune_bytes_written", "Bytes of committed files."),
        "shards": Counter("zoo_prune_shards", "Shards committed."),
    }


def count_shard(record: CommitRecord, num_tokens: int, num_kept: int) -> None:
    """Add a committed shard to the counters."""
    counters = _counters()
    kept = record.files["selections"].rows
    for status, value in (("ok", kept), ("failed", record.counts["images"] - kept)):
        _add(counters["images"], value, {"status": status})
    for reason, value in failed_inputs(record.counts).items():
        _add(counters["errors"], value, {"reason": reason})
    for stage, seconds in record.seconds.items():
        _add(counters["seconds"], seconds, {"stage": stage})
    for kind, value in (("seen", num_tokens), ("kept", num_kept)):
        _add(counters["tokens"], value, {"kind": kind})
    _add(counters["bytes"], sum(entry.size_bytes for entry in record.files.values()), {})
    _add(counters["shards"], 1, {})


def _add(counter: Counter, value: float, tags: dict[str, str]) -> None:
    if value > 0:  # a counter refuses zero
        counter.inc(value, tags)
