"""A shard that kills its worker, or is stuck, every time: the worker is replaced, that shard alone is given up."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest
from fault_tools import REPO

from pipeline.artifact.index import Index
from pipeline.budget import parse_budget
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.outcomes import ENDING, Status
from pipeline.cluster.run_folder import Tries, TriesFolder
from pipeline.cluster.session import quiet_ray_data
from pipeline.cluster.stream import Stage, stream_items
from pipeline.errors import UserError
from pipeline.prune.encode import EncodeSettings
from pipeline.prune.select import SelectSettings
from pipeline.prune.tune import find_batch_size
from pipeline.storage import LocalStore

SCHEMA = pa.schema([("shard", pa.int32()), ("pid", pa.int64()), *ENDING])


def outcomes(work, count: int, processes: int | None = None) -> dict[int, dict]:
    """Rows by shard after a stage on Ray, a block a shard."""
    quiet_ray_data()
    stage = Stage(work, None, num_cpus=0.5, processes=processes)
    rows = list(stream_items([{"shard": shard} for shard in range(count)], [stage]))
    assert sorted(row["shard"] for row in rows) == list(range(count))
    return {row["shard"]: row for row in rows}


def tries_of(folder: Path) -> dict[int, int]:
    """Files a shard: how often it was tried."""
    return {int(path.name): len(list(path.iterdir())) for path in folder.iterdir()}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("place", ["task", "actor"])
def test_a_shard_that_costs_its_worker_every_time_is_given_up_alone(place, tmp_path):
    tries = TriesFolder(LocalStore(tmp_path))
    schema, policy = SCHEMA, Policy(retries=1, timeout_sec=2.0, pause_sec=0.0, tries=tries)
    kills, sticks = 1, 3

    # Nested, so that it is pickled by value: workers can't import this file.
    def stage(batch: pa.Table, _settings: None) -> pa.Table:
        (shard,) = batch["shard"].to_pylist()

        def function() -> pa.Table:
            if shard == kills:
                os.kill(os.getpid(), signal.SIGKILL)
            if shard == sticks:
                time.sleep(600)
            return pa.Table.from_pylist([{"shard": shard, "pid": os.getpid()}], schema)

        return StageRunner("work", policy).run(shard, schema, function)

    class Actor:
        def __init__(self, _settings: None) -> None:
            pass

        def __call__(self, batch: pa.Table) -> pa.Table:
            return stage(batch, None)

    if place == "task":
        rows = outcomes(stage, 5)
    else:
        rows = outcomes(Actor, 5, processes=1)
        assert rows[4]["pid"] != rows[2]["pid"] or rows[0]["pid"] != rows[2]["pid"], "the stuck process went on"
    given_up = [rows.pop(kills), rows.pop(sticks)]
    assert {(row["status"], row["stage"]) for row in given_up} == {(Status.GIVEN_UP, "work")}
    killed, stuck = (row["failure"] for row in given_up)
    assert killed.startswith("stage work: its worker (process ")
    assert killed.endswith("died: killed, or out of memory\n(tried 2 times)")
    assert stuck.startswith("stage work took longer than 2 s (--shard-timeout); it was at\n")
    assert "time.sleep(600)" in stuck
    assert stuck.endswith("(tried 2 times)")
    assert {row["failure"] for row in rows.values()} == {None}
    assert tries_of(tmp_path) == {0: 1, kills: 2, 2: 1, sticks: 2, 4: 1}


@pytest.mark.usefixtures("ray_session")
def test_an_actor_that_dies_while_it_loads_ends_the_run_with_one_sentence(tmp_path):
    schema, policy = SCHEMA, Policy(retries=1, pause_sec=0.0, tries=TriesFolder(LocalStore(tmp_path)))

    class Actor:
        def __init__(self, _settings: None) -> None:
            self.refused = ""
            try:
                StageRunner("work", policy).load(lambda: os.kill(os.getpid(), signal.SIGKILL))
            except UserError as error:
                self.refused = str(error)

        def __call__(self, batch: pa.Table) -> pa.Table:
            return pa.Table.from_pylist([{"shard": batch["shard"][0].as_py(), "failure": self.refused}], schema)

    rows = outcomes(Actor, 2, processes=1)
    (failure,) = {row["failure"] for row in rows.values()}
    assert failure.startswith("a worker of stage work was started 2 times and each time, before the model was loaded,")
    assert "--workers" in failure


@pytest.mark.usefixtures("ray_session")
def test_a_measuring_worker_that_dies_is_bad_input_not_a_traceback(tiny_llava):
    def measure(_settings: EncodeSettings, _index: Index) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 1

    settings = EncodeSettings(tiny_llava, "float32", 0, "model", SelectSettings(parse_budget("16", "")))
    with (
        mock.patch("pipeline.prune.tune._measure", measure),
        pytest.raises(UserError, match="--batch-size auto: the worker that measured it died"),
    ):
        find_batch_size(settings, Index(LocalStore(Path("/nowhere")), []), 0.0)


def run_stuck(
    folder: Path, body: str, timeout_sec: float, grace_sec: float = 60.0, imports: str = ""
) -> subprocess.CompletedProcess[str]:
    """One try of shard 7 in a process of its own, in which `body` does the work."""
    program = f"""
import re, time, pyarrow as pa
{imports}
from pathlib import Path
from pipeline.cluster import attempts
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.outcomes import ENDING
from pipeline.cluster.run_folder import TriesFolder
from pipeline.storage import LocalStore
attempts._LOCKED_GRACE_SEC = {grace_sec}
policy = Policy(retries=0, timeout_sec={timeout_sec}, tries=TriesFolder(LocalStore(Path({str(folder)!r}))))
StageRunner("work", policy).run(7, pa.schema([("shard", pa.int32()), *ENDING]), lambda: {body})
print("ended by itself")
"""
    return subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=60)


def test_a_stuck_process_ends_and_says_where_it_was(tmp_path):
    done = run_stuck(tmp_path, "time.sleep(50)", 0.3)
    assert (done.returncode, done.stdout) == (1, "")
    (failure,) = TriesFolder(LocalStore(tmp_path)).of_shard(7, "work").failures()
    assert failure.splitlines()[0] == "stage work took longer than 0.3 s (--shard-timeout); it was at"
    assert "in <lambda>" in failure


def test_a_process_that_waits_for_a_thread_of_its_own_says_where_that_was(tmp_path):
    """As the encode stage does on a GPU: the thread that the runner knows only waits for another one's result."""
    program = """list(ahead.worked_ahead(
    [0], lambda _: time.sleep(50), lambda one: one, lambda one: one, torch.device("meta")
))"""
    done = run_stuck(tmp_path, program, 0.5, imports="import torch; from pipeline.prune import ahead")
    assert (done.returncode, done.stdout) == (1, "")
    (failure,) = TriesFolder(LocalStore(tmp_path)).of_shard(7, "work").failures()
    waits, *threads = failure.split("\nand its thread ")
    assert "ahead.result()" in waits
    (stuck,) = threads
    assert stuck.startswith("prepare_0 at\n")
    assert "in <lambda>" in stuck


def test_a_process_stuck_in_a_call_that_holds_the_interpreter_ends_too(tmp_path):
    done = run_stuck(tmp_path, "re.match('(a*)*b', 'a' * 40)", 0.3, grace_sec=0.5)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(TriesFolder(LocalStore(tmp_path)).of_shard(7, "work").failures()) == 1


def test_a_new_run_counts_from_zero_and_a_finished_load_is_forgotten(tmp_path):
    store = LocalStore(tmp_path)
    tries = Tries(store, "run/load")
    tries.note(0, "its worker died")
    tries.note(1, "its worker died")
    assert tries.failures() == ["its worker died"] * 2
    assert Tries(store, "other-run/load").failures() == []
    tries.forget()
    assert tries.failures() == []


def cannot_be_written(passing: bool) -> UserError:
    error = UserError("out can't be written: what the system said")
    error.passing = passing
    return error


@pytest.mark.parametrize(
    ("error", "status", "beginning"),
    [
        (cannot_be_written(False), Status.REFUSED, "out can't be written"),
        (cannot_be_written(True), Status.GIVEN_UP, "stage work: out can't be written"),
        (OSError(errno.EIO, "Input/output error"), Status.GIVEN_UP, "stage work: its tries can't be read: "),
    ],
)
def test_a_try_that_cannot_be_written_down_is_not_begun(error, status, beginning, tmp_path):
    class Refusing(LocalStore):
        def put(self, _key: str, _data: bytes):
            raise error

    runner = StageRunner("work", Policy(retries=5, pause_sec=0.0, tries=TriesFolder(Refusing(tmp_path))))
    (row,) = runner.run(7, SCHEMA, lambda: pytest.fail("it began")).to_pylist()
    assert row["status"] == status
    assert row["failure"].startswith(beginning)
