"""Stage write: one encoded shard to its files, then its commit record. Runs in CPU tasks.

File names depend on the shard number alone and a retry writes the same bytes, so a repeated shard replaces itself.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_features_tar, write_table
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.metrics import count_shard
from pipeline.cluster.outcomes import ENDING, Status, passed_on
from schemas.records import CommitRecord, FileEntry
from schemas.statuses import OK, Counted
from schemas.tables import ERRORS, FEATURES, PROMPTS, SELECTIONS

# What the driver learns of a committed shard.
OUTCOME = pa.schema(
    [
        ("shard", pa.int32()),
        ("images", pa.int64()),  # distinct images, those that failed included
        ("kept", pa.int64()),  # images with a selection
        ("samples", pa.int64()),
        ("failed_samples", pa.int64()),
        ("reasons", pa.string()),  # JSON, failed samples per reason
        ("errors", pa.int64()),
        ("size_bytes", pa.int64()),
        ("seconds", pa.string()),  # JSON, per stage
        ("device", pa.string()),  # that the model ran on: "cuda" or "cpu"
        *ENDING,  # unless the shard was committed, nothing else is set
    ]
)

ELSEWHERE = "samples_elsewhere"  # count in a commit record: samples whose image lies in another shard


@dataclass(frozen=True)
class WriteSettings:
    """Where shards go and which forms of features are written."""

    root: Path
    features: tuple[str, ...]  # of "webdataset", "parquet"
    policy: Policy = Policy()


def write_stage(batch: pa.Table, settings: WriteSettings) -> pa.Table:
    """`ENCODED` rows of a shard to its row of `OUTCOME`."""
    ended = passed_on(batch, OUTCOME)
    if ended is not None:
        return ended
    shard = batch["shard"][0].as_py()
    return _runner(settings.policy).run(shard, OUTCOME, lambda: write_shard(batch, settings))


@lru_cache(maxsize=1)
def _runner(policy: Policy) -> StageRunner:
    return StageRunner("write", policy)


def write_shard(batch: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write and commit one shard; one row of `OUTCOME`."""
    started = time.perf_counter()
    rows = batch.to_pylist()
    shard = rows[0]["shard"]
    resolve_repeats(rows, [row for row in rows if row["slot"] is not None])
    selections = sorted((r for r in rows if r["slot"] is not None and r["reason"] is None), key=lambda r: r["slot"])
    statuses, counts = write_statuses(settings.root, shard, rows)
    files = {"selections": write_table(settings.root, "selections", shard, selections, SELECTIONS), **statuses}
    if "webdataset" in settings.features:
        files["features.webdataset"] = write_features_tar(settings.root, shard, selections)
    if "parquet" in settings.features:
        features = [{**row, "width": row["features_width"], "dtype": row["features_dtype"]} for row in selections]
        files["features.parquet"] = write_table(settings.root, "features", shard, features, FEATURES)
    stages = ("read", "decode", "encode", "score", "select")
    seconds = {stage: round(rows[0][f"{stage}_seconds"], 6) for stage in stages}
    seconds["write"] = round(time.perf_counter() - started, 6)
    record = CommitRecord(
        shard=shard,
        files=files,
        counts=counts,
        seconds=seconds,
        began=rows[0]["encode_began"],
        committed=time.time(),
        device=rows[0]["device"],
    )
    Artifact(settings.root).commit(record)
    count_shard(record, sum(r["num_tokens"] for r in selections), sum(r["num_kept"] for r in selections))
    return pa.Table.from_pylist([outcome_of(record)], OUTCOME)


def outcome_of(record: CommitRecord) -> dict[str, Any]:
    """The row of `OUTCOME` that a commit record stands for."""
    return {
        "shard": record.shard,
        "status": Status.COMMITTED,
        "images": record.counts["images"],
        "kept": record.files["selections"].rows,
        "samples": record.counts["samples"],
        "failed_samples": record.counts["samples"] - record.counts.get(Counted.SAMPLES.named(OK), 0),
        "reasons": json.dumps(failed_samples(record)),
        "errors": record.files["errors"].rows,
        "size_bytes": sum(entry.size_bytes for entry in record.files.values()),
        "seconds": json.dumps(record.seconds),
        "device": record.device,
    }


def failed_samples(record: CommitRecord) -> dict[str, int]:
    """Failed input samples of a shard per reason."""
    return {reason: n for reason, n in Counted.SAMPLES.per_status(record.counts).items() if reason != OK}


def resolve_repeats(rows: list[dict[str, Any]], owners: Iterable[dict[str, Any]]) -> None:
    """A sample that repeats the bytes of another fails if that one, the owner of the image, failed.

    Args:
        rows: samples of a shard.
        owners: rows with `image_id`, `source`, `reason` and `message` of samples that own their image.
    """
    failed = {owner["image_id"]: owner for owner in owners if owner["reason"] is not None}
    for row in rows:
        if row["reason"] is None and row["slot"] is None and row["image_id"] in failed:
            owner = failed[row["image_id"]]
            row.update(reason=owner["reason"], message=f"same bytes as {owner['source']}: {owner['message']}")


def prompt_rows(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Rows of the prompts table: every prompt of every sample, with its status."""
    for row in rows:
        shared = {name: row[name] for name in ("image_id", "source", "shard", "image_shard")}
        for prompt in row["prompts"]:
            yield {**prompt, **shared, "status": row["reason"] or prompt["status"]}


def _error_rows(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for row in rows:
        shared = {"source": row["source"], "image_id": row["image_id"], "shard": row["shard"]}
        if row["reason"] is not None:
            yield {**shared, "prompt_id": None, "reason": row["reason"], "message": row["message"]}
            continue
        for prompt in row["prompts"]:
            if prompt["status"] != "ok":
                what = {"reason": prompt["status"], "message": prompt["message"]}
                yield {**shared, "prompt_id": prompt["prompt_id"], **what}


def write_statuses(root: Path, shard: int, rows: list[dict[str, Any]]) -> tuple[dict[str, FileEntry], dict[str, int]]:
    """Write what became of a shard's samples and prompts; the two files, and the counts of the commit record."""
    prompts = list(prompt_rows(rows))
    files = {
        "prompts": write_table(root, "prompts", shard, prompts, PROMPTS),
        "errors": write_table(root, "errors", shard, list(_error_rows(rows)), ERRORS),
    }
    return files, _counts(rows, prompts)


def _counts(rows: list[dict[str, Any]], prompts: list[dict[str, Any]]) -> dict[str, int]:
    """Samples, distinct images and prompts in all; samples whose image lies elsewhere; samples, prompts per status."""
    counts = Counter(samples=len(rows), images=sum(row["slot"] is not None for row in rows), prompts=len(prompts))
    counts[ELSEWHERE] = sum(row["image_shard"] not in (None, row["shard"]) for row in rows)
    counts.update(Counted.SAMPLES.named(row["reason"] or OK) for row in rows)
    counts.update(Counted.PROMPTS.named(prompt["status"]) for prompt in prompts)
    return dict(counts)
