"""What the driver makes of the outcomes of shards, without Ray."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.cluster.device import Placement
from pipeline.cluster.following import MAX_FAILED_SHARDS, Followed, follow
from pipeline.cluster.outcomes import Status
from pipeline.cluster.run_folder import run_folder
from pipeline.cluster.stopping import StopRequest
from pipeline.errors import UserError


def outcome(shard: int, status: Status, failure: str | None = None) -> dict[str, Any]:
    stage = None if failure is None else "encode"
    return {"shard": shard, "status": status, "failure": failure, "stage": stage, "device": "cpu"}


def followed(root: Path, rows: list[dict[str, Any]]) -> tuple[Followed, list[int], list[str]]:
    """How the run ended, the shards that were taken, what was said. No further row comes once a stop is asked for."""
    taken: list[int] = []
    said: list[str] = []

    def outcomes(stop: StopRequest) -> Iterator[dict[str, Any]]:
        for row in rows:
            if stop.made:
                return
            yield row

    artifact = Artifact(root)
    with run_folder(root) as folder:
        run = follow(
            artifact, folder, outcomes, lambda row, _: taken.append(row["shard"]), Placement("cpu", 0.0), said.append
        )
    return run, taken, said


def failures(root: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in root.glob("_failures/*")}


def test_a_shard_that_is_given_up_leaves_a_record_and_stops_no_other(tmp_path):
    rows = [
        outcome(0, Status.COMMITTED),
        outcome(1, Status.GIVEN_UP, "stage encode: it broke\nTraceback"),
        outcome(2, Status.COMMITTED),
        outcome(3, Status.STOPPED, "stopped before it began"),
    ]
    run, taken, said = followed(tmp_path, rows)
    assert (run.done, taken, list(run.failures)) == (2, [0, 2], [1])
    assert said == ["shard 00000001 is given up: stage encode: it broke"]
    (record,) = failures(tmp_path).values()
    assert list(failures(tmp_path)) == ["00000001.json"]
    assert (record["shard"], record["status"], record["stage"]) == (1, "given_up", "encode")
    assert record["message"] == "stage encode: it broke\nTraceback"
    assert record["time"] > 0


def test_refused_input_ends_the_run_with_its_own_sentence(tmp_path):
    rows = [outcome(0, Status.REFUSED, "bad input: is part of this sentence"), outcome(1, Status.COMMITTED)]
    with pytest.raises(UserError, match=r"^bad input: is part of this sentence$"):
        followed(tmp_path, rows)
    assert failures(tmp_path) == {}


def test_too_many_failures_end_the_run_and_say_where_the_tracebacks_are(tmp_path):
    rows = [outcome(n, Status.GIVEN_UP, f"stage encode: {n}") for n in range(2 * MAX_FAILED_SHARDS)]
    with pytest.raises(UserError, match=rf"11 shards failed .* in stage encode: 10; .* in {tmp_path}/_failures;"):
        followed(tmp_path, rows)
    assert len(failures(tmp_path)) == MAX_FAILED_SHARDS + 1


def test_an_outcome_without_a_status_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="None is not a valid Status"):
        followed(tmp_path, [{**outcome(0, Status.COMMITTED), "status": None}])


def test_nothing_of_a_run_stays(tmp_path):
    followed(tmp_path, [outcome(0, Status.COMMITTED)])
    assert list(tmp_path.iterdir()) == []
