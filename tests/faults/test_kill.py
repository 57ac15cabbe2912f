"""SIGKILL in the middle of a run: the output is that of an undisturbed run, byte for byte.

A killed worker (model actor, decode task, write task, answering actor): the same run completes. A killed driver: the
same command run again completes. The suite kills each of them once, in a run of 26 shards: workers of a chosen shard,
when they have done its work but not handed it on, and the driver of an answer job that has joined a Ray, which lives on
(a prune job has more stages; its driver is killed in `test_object_store_kills.py`). `make faults` kills each kind 20
times, at moments spread over a run of 40 shards, and its drivers take the Ray that they started down with them.
"""

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from fault_tools import (
    MANY_SETTINGS,
    MANY_SHARDS,
    NUM_SHARDS,
    REPO,
    RUN_SETTINGS,
    Undisturbed,
    answer_command,
    answers_of,
    commits,
    data_of,
    differing,
    kill_a_worker,
    lost_and_doubled,
    prune_command,
    rows_lost_and_doubled,
    rows_of,
    run_command,
    wait_for,
    workers,
)

from pipeline.answer import job as answering
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.prune import stages

WORKERS = {
    "model actor": "EncodeShards",
    "decode task": "read_stage",
    "write task": "write_stage",
    "answering actor": "AnswerShards",
}
DRIVERS = ("driver", "answering driver")
SEED = 20261120


@dataclass(frozen=True)
class Job:
    """A job to disturb, and how to tell what became of it."""

    run: Callable[[Path], list[str]]  # to its end, from this process; what it said
    command: Callable[[Path], list[str]]
    calm: Path  # output of an undisturbed run
    data: Callable[[Path], dict[str, bytes]]  # what must be as in the undisturbed run
    lost_and_doubled: Callable[[Path], tuple[int, int]]  # rows, against the inputs
    num_shards: int
    table: str  # a folder of its output


def prune_job_of(undisturbed: Undisturbed, prune_on_ray: Callable[..., list[str]], model: str) -> Job:
    corpus, settings = undisturbed.corpus, undisturbed.settings
    return Job(
        run=lambda output: prune_on_ray(output, corpus=(corpus,), **settings["prune"]),
        command=lambda output: prune_command(corpus, model, output, settings=settings),
        calm=undisturbed.output,
        data=data_of,
        lost_and_doubled=lambda output: rows_lost_and_doubled(output, undisturbed.facts),
        num_shards=undisturbed.num_shards,
        table="features",
    )


def answer_job_of(
    undisturbed: Undisturbed, without_ray: Callable[..., AbstractContextManager[None]], model: str, folder: Path
) -> Job:
    pruned = undisturbed.output

    def run(output: Path) -> list[str]:
        said: list[str] = []
        settings = AnswerSettings(pruned=str(pruned), model=model, output=str(output), **undisturbed.settings["answer"])
        answer_corpus(settings, said.append)
        return said

    posed = [row["prompt_id"] for row in rows_of(pruned, "prompts") if row["status"] == "ok"]
    with without_ray():
        run(folder / "out")
    return Job(
        run=run,
        command=lambda output: answer_command(pruned, model, output, undisturbed.settings),
        calm=folder / "out",
        data=answers_of,
        lost_and_doubled=lambda output: lost_and_doubled(posed, (r["prompt_id"] for r in rows_of(output, "answers"))),
        num_shards=undisturbed.num_shards,
        table="answers",
    )


@pytest.fixture(scope="module")
def prune_job(prune_on_ray, undisturbed_run, tiny_llava) -> Job:
    return prune_job_of(undisturbed_run, prune_on_ray, tiny_llava)


@pytest.fixture(scope="module")
def answer_job(ray_session, without_ray, undisturbed_run, tiny_llava, tmp_path_factory) -> Job:
    return answer_job_of(undisturbed_run, without_ray, tiny_llava, tmp_path_factory.mktemp("calm-answers"))


@pytest.fixture(scope="module")
def long_prune_job(prune_on_ray, long_run, tiny_llava) -> Job:
    return prune_job_of(long_run, prune_on_ray, tiny_llava)


@pytest.fixture(scope="module")
def long_answer_job(ray_session, without_ray, long_run, tiny_llava, tmp_path_factory) -> Job:
    return answer_job_of(long_run, without_ray, tiny_llava, tmp_path_factory.mktemp("calm-answers"))


@pytest.fixture
def job_of(request, ray_session) -> Callable[[str], Job]:
    """The job, in its long form, that a victim works for."""
    return lambda victim: request.getfixturevalue("long_answer_job" if "answering" in victim else "long_prune_job")


@dataclass
class Kill:
    """One kill that found its victim alive and the run unfinished, and what became of the run."""

    planned_share: float  # of the run's usual duration
    after_sec: float  # since the victim's kind first appeared (a worker), since the start (the driver)
    commits_before: int
    files_differing: int = -1  # from those of the undisturbed run
    rows_lost: int = -1
    rows_doubled: int = -1

    def judge(self, output: Path, job: Job) -> None:
        """Compare the completed output with the undisturbed one and with the inputs."""
        self.files_differing = len(differing(job.data(output), job.data(job.calm)))
        self.rows_lost, self.rows_doubled = job.lost_and_doubled(output)

    @property
    def harmless(self) -> bool:
        return (self.files_differing, self.rows_lost, self.rows_doubled) == (0, 0, 0)


def moments(victim: str, count: int) -> list[float]:
    """`count` random shares of a run, one in each of `count` equal parts, in random order."""
    generator = random.Random(f"{SEED}:{victim}")
    shares = [(n + generator.random()) / count for n in range(count)]
    generator.shuffle(shares)
    return shares


def attempts(victim: str, count: int) -> list[float]:
    """Moments for `count` kills, and for those that find the run over or nobody at that work: three rounds more."""
    return [share for n in range(4) for share in moments(f"{victim}, round {n}" if n else victim, count)]


class WorkerKiller(threading.Thread):
    """Waits for the victim's kind to appear, then until the moment, then kills the first one seen at work."""

    def __init__(self, victim: str, output: Path, share: float, usual_sec: float) -> None:
        super().__init__(daemon=True)
        self.kill: Kill | None = None
        self._victim, self._output, self._share, self._usual_sec = victim, output, share, usual_sec
        self._over = threading.Event()

    def run(self) -> None:
        words = WORKERS[self._victim]
        while not self._over.is_set() and not any(workers(os.getpid(), words)):
            time.sleep(0.05)
        appeared = time.monotonic()
        self._over.wait(self._share * self._usual_sec)
        while not self._over.is_set():
            before = commits(self._output)
            if kill_a_worker(os.getpid(), words) is not None:
                self.kill = Kill(self._share, round(time.monotonic() - appeared, 3), before)
                return
            time.sleep(0.01)

    def stop(self) -> Kill | None:
        """End the wait; the kill, if it came while the run was unfinished."""
        self._over.set()
        self.join()
        return self.kill if self.kill is not None and self.kill.commits_before < MANY_SHARDS else None


def kill_workers(victim: str, count: int, job: Job, folder: Path) -> Iterator[Kill]:
    """Kill `count` times, a run each; every run must complete."""
    usual_sec = _usual_seconds(job, folder / "usual", WORKERS[victim])
    met = 0
    for attempt, share in enumerate(attempts(victim, count)):
        output = folder / f"{attempt:02d}"
        killer = WorkerKiller(victim, output, share, usual_sec)
        killer.start()
        job.run(output)
        kill = killer.stop()
        if kill is not None:
            kill.judge(output, job)
            yield kill
            met += 1
            if met == count:
                return
    raise AssertionError(f"only {met} of {count} kills met a living {victim} in an unfinished run")


def _usual_seconds(job: Job, output: Path, words: str) -> float:
    """From the first appearance of the work named to the end of an undisturbed run."""
    appeared: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not any(workers(os.getpid(), words)):
            time.sleep(0.05)
        appeared.append(time.monotonic())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    job.run(output)
    ended = time.monotonic()
    over.set()
    watcher.join()
    return ended - appeared[0]


def kill_drivers(victim: str, count: int, job: Job, folder: Path) -> Iterator[Kill]:
    """Kill the driver `count` times, a fresh output each; the same job run again must then complete it."""
    started = time.monotonic()
    assert run_command(job.command(folder / "usual")).returncode == 0
    usual_sec = time.monotonic() - started
    met = 0
    for attempt, share in enumerate(attempts(victim, count)):
        output = folder / f"{attempt:02d}"
        started = time.monotonic()
        with subprocess.Popen(job.command(output), cwd=REPO, stderr=subprocess.DEVNULL) as driver:
            try:
                driver.wait(share * usual_sec)
            except subprocess.TimeoutExpired:
                before = commits(output)
                os.kill(driver.pid, signal.SIGKILL)
                after = round(time.monotonic() - started, 3)
        finished = (output / "_SUCCESS").exists()
        job.run(output)
        if driver.returncode == -signal.SIGKILL and not finished:
            kill = Kill(share, after, before)
            kill.judge(output, job)
            yield kill
            met += 1
            if met == count:
                return
    raise AssertionError(f"only {met} of {count} kills met a living driver in an unfinished run")


def dying_once(work: type | Callable[..., pa.Table], shard: int, marker: Path) -> type | Callable[..., pa.Table]:
    """A stage whose worker is killed when it has done the work of `shard` for the first time; `marker` says so."""

    # Nested, so that they are pickled by value: workers can't import this file.
    def die(batch: pa.Table) -> None:
        if batch["shard"][0].as_py() == shard and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    if isinstance(work, type):

        class Actor(work):
            def __call__(self, batch: pa.Table) -> pa.Table:
                done = super().__call__(batch)
                die(batch)
                return done

        return Actor

    def task(batch: pa.Table, settings: object) -> pa.Table:
        done = work(batch, settings)
        die(batch)
        return done

    return task


@pytest.mark.parametrize(
    ("job", "module", "victims"),
    [
        ("prune_job", stages, {"read_stage": 3, "EncodeShards": 11, "write_stage": 22}),
        ("answer_job", answering, {"AnswerShards": 7}),
    ],
)
def test_killed_workers_change_nothing(job, module, victims, request, ray_session, monkeypatch, tmp_path):
    job = request.getfixturevalue(job)
    for name, shard in victims.items():
        monkeypatch.setattr(module, name, dying_once(getattr(module, name), shard, tmp_path / name))
    job.run(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out", *victims]), "somebody was not killed"
    assert differing(job.data(tmp_path / "out"), job.data(job.calm)) == []
    assert job.lost_and_doubled(tmp_path / "out") == (0, 0)


# An answer job whose shards take half a second each, so that its driver can be killed before they are done.
SLOWLY = """
import runpy, time
from pipeline.answer import job, stage

class AnswerShards(stage.AnswerShards):
    def __call__(self, batch):
        time.sleep(0.5)
        return super().__call__(batch)

job.AnswerShards = AnswerShards
runpy.run_module("jobs.answer_corpus", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("job", ["answer_job", pytest.param("prune_job", marks=pytest.mark.slow)])
def test_a_killed_driver_loses_nothing(job, request, joining_ray, without_ray, tmp_path):
    output = tmp_path / "killed"
    is_answering, job = job == "answer_job", request.getfixturevalue(job)
    command = job.command(output)
    if is_answering:
        command = [command[0], "-c", SLOWLY, *command[3:]]
    with subprocess.Popen(command, cwd=REPO, env=joining_ray, stderr=subprocess.DEVNULL) as driver:
        assert wait_for(lambda: commits(output) >= 3 or driver.poll() is not None, 240, 0.02), "no commit in time"
        assert driver.poll() is None, "the driver ended before it could be killed"
        os.kill(driver.pid, signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    assert not (output / "_SUCCESS").exists()
    assert commits(output) < job.num_shards
    half_written = output / job.table / f".part-{job.num_shards - 1:08d}.parquet.0123.tmp"
    half_written.write_bytes(b"half")

    committed = {path: path.stat().st_mtime_ns for path in (output / "_commits").glob("[!.]*")}
    with without_ray():
        said = job.run(output)
    assert is_answering or any("shards are there already" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in committed} == committed, "what was committed is done again"
    assert differing(job.data(output), job.data(job.calm)) == []
    assert job.lost_and_doubled(output) == (0, 0)
    assert not half_written.exists()

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with without_ray():
        assert any("nothing to do" in line for line in job.run(output))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_the_calm_run_holds_every_row_once(calm, facts):
    assert rows_lost_and_doubled(calm, facts) == (0, 0)
    assert commits(calm) == NUM_SHARDS
    assert len(facts.images) > 0.95 * RUN_SETTINGS["images"]
    assert facts.failed


@pytest.mark.slow
@pytest.mark.parametrize("victim", [*WORKERS, *DRIVERS])
def test_many_kills(victim, request, job_of, tmp_path):
    count = request.config.getoption("--kills", default=20)
    each = (kill_drivers if victim in DRIVERS else kill_workers)(victim, count, job_of(victim), tmp_path)
    kills = []
    for kill in each:
        kills.append(kill)
        _report(request.config.getoption("--kill-report", default=None), victim, kills)
    assert len(kills) == count
    assert [kill for kill in kills if not kill.harmless] == []


def _report(file: str | None, victim: str, kills: list[Kill]) -> None:
    """Add the kills of one victim, and what became of the runs, to the report."""
    if file is None:
        return
    path = Path(file)
    report = json.loads(path.read_text()) if path.exists() else {}
    report.update(command="make faults", shards=MANY_SHARDS, images=MANY_SETTINGS["images"])
    report.setdefault("victims", {})[victim] = {
        "kills": len(kills),
        "outputs_identical": sum(kill.files_differing == 0 for kill in kills),
        "rows_lost": sum(kill.rows_lost for kill in kills),
        "rows_doubled": sum(kill.rows_doubled for kill in kills),
        "each": [asdict(kill) for kill in sorted(kills, key=lambda kill: kill.planned_share)],
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
