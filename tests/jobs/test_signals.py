"""Ctrl-C and SIGTERM: quiet before shards are in flight and when sent twice; sent once, these shards are finished.

Signals to shards in flight go to a job that has joined the Ray of the session.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import ray

from pipeline.cluster.status import State, job_status
from tests.faults.fault_tools import commits, data_of, differing, wait_for, workers

REPO = Path(__file__).resolve().parents[2]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
SAID = {
    signal.SIGINT: "interrupted; run the same command again to resume",
    signal.SIGTERM: "terminated; run the same command again to resume",
}
HIDDEN = """
import os, signal, sys
from jobs.leaving import leave_on_signals
leave_on_signals()
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as while Ray starts
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    while True:
        pass
except BaseException:
    print("an exception came up")
"""


@pytest.mark.parametrize("number", STATUS)
def test_the_sentence_is_seen_even_where_standard_error_is_held_back(number):
    done = subprocess.run([sys.executable, "-c", HIDDEN, str(int(number))], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (STATUS[number], "", f"{SAID[number]}\n")


@pytest.mark.parametrize(
    "program", ["jobs.prune_corpus", "jobs.answer_corpus", "jobs.query_selections", "jobs.zoo_prune"]
)
def test_a_signal_while_the_program_is_imported(program):
    """Python says by `-X importtime` where it is: at what is imported after the first of our modules."""
    command = [sys.executable, "-X", "importtime", "-m", program, "--help"]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        begun = False
        for line in job.stderr:
            if begun:
                job.send_signal(signal.SIGINT)
                break
            begun = "jobs.leaving" in line
        said, errors = job.communicate(timeout=60)
    assert (job.returncode, said) == (130, "")
    assert errors.splitlines()[-1] == SAID[signal.SIGINT]
    assert "Traceback" not in errors


def children(process: int) -> list[tuple[int, str]]:
    """Number and command of the processes that it started."""
    try:
        numbers = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [(int(one), Path(f"/proc/{one}/cmdline").read_text()) for one in numbers]
    except OSError:
        return []


def maps_torch(process: int, _output: Path) -> bool:
    return "libtorch" in Path(f"/proc/{process}/maps").read_text()


def starts_ray(process: int, _output: Path) -> bool:
    return any("raylet" in command or "gcs_server" in command for _, command in children(process))


def indexes(_process: int, output: Path) -> bool:
    return (output / "_index" / "scan").exists()


def streams(_process: int, output: Path) -> bool:
    return (output / "_runs").exists()


def answers_on_the_session(_process: int, output: Path) -> bool:
    return streams(0, output) and actors_on_the_session()


def actors_on_the_session() -> bool:
    return any(workers(os.getpid(), "AnswerShards"))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("moment", "number", "times"),
    [
        (maps_torch, signal.SIGINT, 1),
        pytest.param(starts_ray, signal.SIGTERM, 1, marks=pytest.mark.slow),
        (starts_ray, signal.SIGINT, 1),
        pytest.param(indexes, signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(streams, signal.SIGINT, 2, marks=pytest.mark.slow),
    ],
)
def test_a_job_is_left_quietly(
    moment: Callable[[int, Path], bool], number: signal.Signals, times: int, scenes_tars, tiny_llava, tmp_path
):
    """With the Ray that it started."""
    job = ["prune", "--corpus", scenes_tars, "--model", tiny_llava, "--shard-size", "16"]
    started = leave(moment, number, times, job, tmp_path / "out", dict(os.environ))
    ended = wait_for(lambda: not any(alive(process, command) for process, command in started), 60, 0.1)
    assert ended, "processes of Ray outlive the job"


# A prune job whose model begins the shards from BEGUN on only when the job has been asked to stop, whatever is read by
# then: of so small a corpus mostly all.
GOES_ON_WHEN_STOPPED = """
import runpy, sys, time
from pipeline.prune import encode, stages

begun = int(sys.argv.pop(1))

class EncodeShards(encode.EncodeShards):
    def __call__(self, batch):
        latest = time.monotonic() + 120
        while batch["shard"][0].as_py() >= begun and not self._settings.stop_file.is_there:
            assert time.monotonic() < latest
            time.sleep(0.05)
        return super().__call__(batch)

stages.EncodeShards = EncodeShards
runpy.run_module("jobs.prune_corpus", run_name="__main__", alter_sys=True)
"""
BEGUN = 3


def test_sigterm_finishes_the_shards_in_flight(prune, joining_ray, tiny_llava, tmp_path):
    output, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    corpus = str(REPO / "examples" / "scenes" / "scenes-000000.tar")
    settings = {"corpus": (corpus,), "max_tokens": "4", "shard_size": 8, "limit": 40}
    prune(undisturbed, **settings)
    shards = commits(undisturbed)
    command = [
        sys.executable, "-c", GOES_ON_WHEN_STOPPED, str(BEGUN), "--corpus", corpus, "--model", tiny_llava,
        "--output", str(output), "--max-tokens", "4", "--shard-size", "8", "--limit", "40", "--workers", "1",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=REPO, env=joining_ray, stderr=subprocess.PIPE, text=True) as job:
        try:
            assert wait_for(lambda: commits(output) or job.poll() is not None, 240, 0.02), "no commit in time"
            job.send_signal(signal.SIGTERM)
            _, said = job.communicate(timeout=240)
        finally:
            job.kill()  # where the test has failed
    assert job.returncode == 128 + signal.SIGTERM, said
    assert "SIGTERM: finishing the shards in flight" in said
    assert "run the same command again to resume" in said
    assert "Traceback" not in said
    done = commits(output)
    assert 0 < done <= BEGUN < shards
    assert not (output / "_SUCCESS").exists()
    assert not (output / "_runs").exists()
    before = {name: (output / name).stat().st_mtime_ns for name in data_of(output)}
    assert f"{done} of {shards} shards are there already" in prune(output, **settings)
    assert (output / "_SUCCESS").exists()
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    assert differing(data_of(output), data_of(undisturbed)) == []


def test_two_ctrl_c_leave_a_stream_and_its_workers_end(pruned_64, tiny_llava, joining_ray, tmp_path):
    """On a Ray that the job has joined, which lives on; a prune job on its own Ray is a slow case of the test above."""
    assert wait_for(lambda: not actors_on_the_session(), 120, 0.1), "workers of an earlier test outlive it"
    job = ["answer", "--pruned", str(pruned_64), "--model", tiny_llava, "--workers", "1"]
    leave(answers_on_the_session, signal.SIGINT, 2, job, tmp_path / "out", joining_ray)
    assert wait_for(lambda: not actors_on_the_session(), 60, 0.1), "workers outlive the job"
    assert ray.get(ray.put("the session's Ray")) == "the session's Ray"


def leave(
    moment: Callable[[int, Path], bool],
    number: signal.Signals,
    times: int,
    arguments: Sequence[str],
    output: Path,
    environment: dict[str, str],
) -> list[tuple[int, str]]:
    """Start a job, send it signals from a moment on, and see that it says what it should and no more.

    Args:
        moment: of the job's process number and output.
        number: of the signal.
        times: that it is sent, half a second apart.
        arguments: of `zoo-prune`, but for the output.
        output: of the job.
        environment: of the job's process.

    Returns:
        Number and command of the processes that it had started by that moment.
    """
    command = [sys.executable, "-m", "jobs.zoo_prune", *arguments, "--output", str(output)]
    with subprocess.Popen(command, cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 240
        while not moment(job.pid, output):
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = children(job.pid)
        if moment is streams:  # on Ray, what tests/jobs/test_status.py has seen without
            seen = job_status(str(output))
            assert (seen.state, seen.owner and seen.owner.process) == (State.RUNNING, job.pid)
        for n in range(times):
            job.send_signal(number)
            if n + 1 < times:
                time.sleep(0.5)
        _, said = job.communicate(timeout=60)
    assert job.returncode == STATUS[number], said
    if moment is streams:
        assert job_status(str(output)).state is State.STOPPED
    lines = said.splitlines()
    assert lines[-1] == SAID[number]
    known = (
        "indexing ",
        "indexed ",
        "1 prompt can't be posed",
        f"{number.name}: finishing the shards in flight",
        "SIGINT: ",
    )
    progress = (" images (", " prompts (")
    unknown = [line for line in lines[:-1] if not (line.startswith(known) or any(one in line for one in progress))]
    assert unknown == []
    return started


def alive(process: int, command: str) -> bool:
    try:
        return Path(f"/proc/{process}/cmdline").read_text() == command != ""
    except OSError:
        return False


def test_a_second_signal_does_what_it_would_have_done_without_us(tmp_path):
    from pipeline.cluster.run_folder import run_folder
    from pipeline.cluster.stopping import stop_on_signals

    said: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may ignore it
    try:
        with run_folder(tmp_path) as folder, stop_on_signals(folder.stop_file, said.append) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.made
            with pytest.raises(KeyboardInterrupt):  # of Python's own handler, which the block has replaced
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == ["SIGINT: finishing the shards in flight; once more to leave at once"]
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with run_folder(tmp_path) as folder, stop_on_signals(folder.stop_file, said.append):
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
