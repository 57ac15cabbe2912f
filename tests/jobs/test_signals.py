"""Ctrl-C and SIGTERM at any moment before shards are in flight, and twice after: quiet, with their own status."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.ray
@pytest.mark.parametrize(
    ("moment", "number", "times"),
    [
        (maps_torch, signal.SIGINT, 1),
        pytest.param(starts_ray, signal.SIGTERM, 1, marks=pytest.mark.slow),
        (starts_ray, signal.SIGINT, 1),
        pytest.param(indexes, signal.SIGTERM, 1, marks=pytest.mark.slow),
        (streams, signal.SIGINT, 2),
    ],
)
def test_a_job_is_left_quietly(
    moment: Callable[[int, Path], bool], number: signal.Signals, times: int, scenes_tars, tiny_llava, tmp_path
):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.zoo_prune", "prune", "--corpus", scenes_tars, "--model", tiny_llava]
    command += ["--output", str(output), "--shard-size", "16"]
    with subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 240
        while not moment(job.pid, output):
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = children(job.pid)
        for n in range(times):
            job.send_signal(number)
            if n + 1 < times:
                time.sleep(0.5)
        _, said = job.communicate(timeout=60)
    assert job.returncode == STATUS[number], said
    lines = said.splitlines()
    assert lines[-1] == SAID[number]
    known = (
        "indexing ",
        "indexed ",
        "1 prompt can't be posed",
        f"{number.name}: finishing the shards in flight",
        "SIGINT: ",
    )
    assert [line for line in lines[:-1] if not line.startswith(known) and " images (" not in line] == []
    deadline = time.monotonic() + 60
    while any(alive(process, command) for process, command in started):
        assert time.monotonic() < deadline, "processes of Ray outlive the job"
        time.sleep(0.1)


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
