"""One shard through one stage: retries, time-outs, and failures that travel to the driver."""

import threading

import pyarrow as pa
import pytest
import torch

from pipeline.cluster import attempts
from pipeline.cluster.attempts import Policy, ProcessSpentError, StageRunner
from pipeline.cluster.outcomes import ENDING, Status, ended_shard, passed_on
from pipeline.cluster.run_folder import TriesFolder
from pipeline.errors import UserError
from pipeline.storage import LocalStore

SCHEMA = pa.schema([("shard", pa.int32()), ("value", pa.int32()), *ENDING])
GOOD = pa.Table.from_pylist([{"shard": 7, "value": 1}], SCHEMA)


def runner(**policy) -> StageRunner:
    return StageRunner("work", Policy(**{"pause_sec": 0.0, **policy}))


def test_a_shard_that_succeeds_at_last_is_a_success():
    calls = []

    def flaky() -> pa.Table:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the disk hiccuped")
        return GOOD

    assert runner(retries=2).run(7, SCHEMA, flaky) is GOOD
    assert passed_on(GOOD, SCHEMA) is None


def test_a_shard_that_never_succeeds_says_why():
    def broken() -> pa.Table:
        raise RuntimeError("always")

    table = runner(retries=1).run(7, SCHEMA, broken)
    assert table.schema == SCHEMA
    (row,) = table.to_pylist()
    assert (row["shard"], row["status"], row["stage"]) == (7, Status.GIVEN_UP, "work")
    failure = row["failure"]
    assert failure.splitlines()[0] == "stage work: RuntimeError: always"
    assert "Traceback" in failure
    assert "tried 2 times" in failure


def test_a_stages_own_timeout_error_is_not_taken_for_a_stuck_shard():
    def refused() -> pa.Table:
        raise TimeoutError("the server did not answer")

    (row,) = runner(retries=0).run(7, SCHEMA, refused).to_pylist()
    assert "TimeoutError: the server did not answer" in row["failure"]


def test_bad_input_is_not_tried_again():
    calls = []

    def refuse() -> pa.Table:
        calls.append(1)
        raise UserError("no such thing")

    (row,) = runner(retries=5).run(7, SCHEMA, refuse).to_pylist()
    assert (row["status"], row["failure"]) == (Status.REFUSED, "no such thing")
    assert calls == [1]


@pytest.mark.parametrize("status", Status)
def test_a_shard_that_ended_is_one_row_which_later_stages_pass_on(status):
    ended = ended_shard(3, SCHEMA, status, "bad input: is only a text", "work")
    row = {"shard": 3, "status": status, "failure": "bad input: is only a text", "stage": "work"}
    assert ended.to_pylist() == [{**row, "value": None}]
    later = pa.schema([("shard", pa.int32()), ("more", pa.string()), *ENDING])
    passed = passed_on(ended, later)
    assert passed is not None
    assert passed.to_pylist() == [{**row, "more": None}]


def test_a_shard_for_which_memory_runs_out_starts_again_at_half_the_batch(tmp_path):
    """No start counts as a failed try, and the next shard begins at the size that was asked for."""
    sizes: list[int] = []

    def work(size: int) -> pa.Table:
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return GOOD

    one = runner(retries=0, tries=TriesFolder(LocalStore(tmp_path)))
    assert one.run_batches(7, SCHEMA, 8, work) is GOOD
    assert one.run_batches(8, SCHEMA, 8, work) is GOOD
    assert sizes == [8, 4, 2] * 2


def test_a_failure_at_half_the_batch_is_tried_again_from_the_whole():
    sizes: list[int] = []

    def work(size: int) -> pa.Table:
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if len(sizes) < 4:
            raise OSError("the disk hiccuped")
        return GOOD

    assert runner(retries=1).run_batches(7, SCHEMA, 4, work) is GOOD
    assert sizes == [4, 2, 4, 2]


def test_a_shard_that_fits_at_no_batch_is_given_up_at_once_with_a_sentence():
    sizes: list[int] = []

    def full(size: int) -> pa.Table:
        sizes.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    (row,) = runner(retries=2).run_batches(7, SCHEMA, 4, full).to_pylist()
    assert sizes == [4, 2, 1]
    assert (row["shard"], row["status"]) == (7, Status.GIVEN_UP)
    sentence, trace = row["failure"].split("\n", 1)
    assert sentence.startswith("stage work: memory runs out with one item in a batch (OutOfMemoryError: CUDA out of")
    assert "fewer --workers" in sentence
    assert "Traceback" in trace


def test_every_start_has_the_whole_time_out(monkeypatch):
    ends: list[float] = []
    monkeypatch.setattr(threading.Timer, "start", lambda self: ends.append(self.interval))
    monkeypatch.setattr(threading.Timer, "cancel", lambda self: ends.append(0.0))

    def work(size: int) -> pa.Table:
        if size > 1:
            raise MemoryError
        return GOOD

    assert runner(timeout_sec=5.0).run_batches(7, SCHEMA, 4, work) is GOOD
    assert ends == [5.0, 0.0] * 3


def test_a_process_that_is_spent_ends_after_its_reason_is_written_down(tmp_path, monkeypatch):
    """Ray starts another with the same shard, which finds the try counted and goes on from there."""
    folder = TriesFolder(LocalStore(tmp_path))
    shard = folder.of_shard(7, "work")

    def end() -> None:
        (reason,) = shard.failures()
        raise SystemExit(reason)

    def die() -> pa.Table:
        raise ProcessSpentError("the engine died")

    monkeypatch.setattr(attempts, "end_process", end)
    with pytest.raises(SystemExit, match="ProcessSpentError: the engine died"):
        runner(retries=1, tries=folder).run(7, SCHEMA, die)
    assert runner(retries=1, tries=folder).run(7, SCHEMA, lambda: GOOD) is GOOD
    shard.note(1, "stage work: it died again")
    (row,) = runner(retries=1, tries=folder).run(7, SCHEMA, die).to_pylist()
    assert (row["status"], row["failure"]) == (Status.GIVEN_UP, "stage work: it died again\n(tried 2 times)")
