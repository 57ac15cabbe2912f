"""`zoo-prune status`: how far a job is, read out of its output, whoever works on it and however that ended."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from jobs import answer_corpus, job_status
from jobs.job_status import lines_of
from pipeline.artifact.artifact import Artifact
from pipeline.cluster import status as status_of
from pipeline.cluster.run_folder import run_folder
from pipeline.cluster.status import JobStatus, State
from pipeline.errors import UserError
from pipeline.prune import write
from schemas.records import FailureRecord, OwnerRecord, to_json


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


def look(output: Path) -> JobStatus:
    return status_of.job_status(output)


def told(output: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert job_status.main(["--output", str(output)]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def dead_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Twelve samples in shards of three: one image is missing, one prompt is empty."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for n in range(12):
        if n != 4:
            Image.new("RGB", (40, 40), (20 * n, 0, 0)).save(folder / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "prompts": ["what ?", "" if n == 8 else "how many ?"]}))
    (folder / "m.jsonl").write_text("\n".join(lines))
    return folder / "m.jsonl"


SETTINGS = {"max_tokens": "4", "shard_size": 3, "batch_size": 3}


def test_a_run_is_seen_while_it_goes_on_and_when_it_is_done(prune, corpus, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    seen: list[JobStatus] = []
    monkeypatch.setattr(write, "count_shard", lambda *_: seen.append(look(output)))
    prune(output, corpus=(str(corpus),), **SETTINGS)
    assert [(one.state, one.shards_done, one.shards) for one in seen] == [(State.RUNNING, n, 4) for n in (1, 2, 3, 4)]
    assert [one.done for one in seen] == [3, 6, 9, 11]
    assert all((one.kind, one.unit, one.total) == ("prune", "images", 11) for one in seen)
    assert seen[0].owner is not None
    assert (seen[0].owner.process, seen[0].owner.host) == (os.getpid(), socket.gethostname())
    assert [one.rate is None for one in seen] == [True, False, False, False]
    assert seen[2].rate is not None
    assert seen[2].eta_sec == pytest.approx((11 - 9) / seen[2].rate)
    assert seen[3].errors == {"missing_file": 1, "empty_prompt": 1}
    after = look(output)
    assert (after.state, after.owner, after.shards_running) == (State.FINISHED, None, {})
    folders = ("selections", "prompts", "errors", "features", "payloads")
    files = [path for name in folders for path in (output / name).iterdir()]
    assert after.size_bytes == sum(path.stat().st_size for path in files)
    lines = told(output, capsys)
    assert lines[0] == f"prune job in {output}: finished"
    assert lines[1] == "shards   4 of 4 done, 0 running, 0 failed, 0 waiting"
    assert lines[2] == f"images   11 of 11, {after.size_bytes:,} bytes"
    assert [line for line in lines if line.startswith("errors")] == [
        "errors   1 missing_file",
        "errors   1 empty_prompt",
    ]


def test_it_takes_no_lock_and_writes_nothing(pruned_64, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    shutil.copytree(pruned_64, output)
    (output / "_SUCCESS").unlink()
    Artifact(output).forget([2, 3])
    before = snapshot(output)
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("it took a lock"))
    lines = told(output, capsys)
    assert snapshot(output) == before
    assert lines[0] == f"prune job in {output}: stopped"
    assert lines[1] == "shards   3 of 5 done, 0 running, 0 failed, 2 waiting"


def test_a_killed_run_is_told_with_what_it_was_at(small_pruned, dead_process, tmp_path, capsys):
    output = small_pruned(tmp_path / "out", shards=3)
    artifact = Artifact(output)
    artifact.reopen()
    artifact.forget([1, 2])
    artifact.give_up(FailureRecord(1, time.time(), "given_up", "encode", "stage encode: it fell\nTraceback"))
    killed = OwnerRecord(dead_process, socket.gethostname(), time.time() - 60)
    with run_folder(output) as folder:  # in the block, as a run that was killed leaves it
        (output / "_lock").write_bytes(to_json(killed))
        folder.tries.of_shard(2, "read").note(0, "died")
        folder.tries.of_shard(2, "encode").note(0, "died")
        folder.tries.of_load("actor").note(0, "died")
        folder.tries.of_shard(0, "write").note(0, "died")  # it died between its commit and its word of it
        found = look(output)
        lines = told(output, capsys)
    assert (found.state, found.owner) == (State.STOPPED, killed)
    assert found.shards_running == {2: "encode"}
    assert [record.shard for record in found.shards_failed] == [1]
    assert found.shards is None  # nothing was indexed here
    assert f"stopped: process {dead_process} on {socket.gethostname()} was killed; run the same command" in lines[0]
    assert lines[1] == "shards   1 of an unknown number of done, 1 running, 1 failed"
    assert "running  00000002 in encode" in lines
    assert "failed   00000001: stage encode: it fell" in lines
    assert any(line.startswith("note     its _index is gone, so it is not known how many shards") for line in lines)
    Artifact(output).forget([0])
    assert any(line.startswith("note     the corpus is not indexed yet") for line in told(output, capsys))


def test_a_driver_on_another_machine_is_neither_dead_nor_alive(small_pruned, tmp_path, capsys):
    output = small_pruned(tmp_path / "out")
    (output / "_SUCCESS").unlink()
    (output / "_lock").write_bytes(to_json(OwnerRecord(1, "elsewhere.example", time.time() - 65)))
    assert look(output).state is State.ELSEWHERE
    assert (
        "held by process 1 on elsewhere.example, begun 1:05 ago; from here it can't be told" in told(output, capsys)[0]
    )


def test_the_rate_is_that_of_the_run_after_its_first_shard(small_pruned, dead_process, tmp_path):
    output = small_pruned(tmp_path / "out", shards=4)
    for shard, committed in enumerate((500.0, 1010.0, 1012.0, 1014.0)):  # the first by an earlier run
        path = output / "_commits" / f"{shard:08d}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "committed": committed}))
    (output / "_lock").write_bytes(to_json(OwnerRecord(dead_process, socket.gethostname(), 1000.0)))
    found = look(output)
    assert found.rate == pytest.approx(6 / 4)
    assert found.last_commit == 1014.0
    (output / "_lock").write_bytes(b"")
    assert look(output).rate is None


def test_an_answer_job_is_told_like_a_prune_job(pruned_64, tiny_llava, work_here, tmp_path, monkeypatch, capsys):
    output = tmp_path / "answers"
    seen: list[JobStatus] = []
    commit = Artifact.commit

    def note(artifact: Artifact, record: object) -> None:
        commit(artifact, record)  # type: ignore[arg-type]
        seen.append(look(output))

    monkeypatch.setattr(Artifact, "commit", note)
    arguments = ["--pruned", str(pruned_64), "--model", tiny_llava, "--output", str(output), "--max-new-tokens", "1"]
    assert answer_corpus.main([*arguments, "--tokens", "8"]) == 0
    posable = sum(one["counts"]["prompts.ok"] for one in map(json.loads, (
        path.read_text() for path in (pruned_64 / "_commits").iterdir())))  # fmt: skip
    assert [(one.state, one.shards_done, one.shards) for one in seen] == [
        (State.RUNNING, n, 5) for n in (1, 2, 3, 4, 5)
    ]
    assert all((one.kind, one.unit, one.total) == ("answer", "prompts", posable) for one in seen)
    assert look(output).done == posable
    capsys.readouterr()
    assert job_status.main(["--output", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["shards"], found["shards_done"], found["done"]) == ("finished", 5, 5, posable)

    record = json.loads((output / "_job.json").read_text())
    record["environment"]["pruned"] = str(tmp_path / "moved")
    (output / "_job.json").write_text(json.dumps(record))
    lines = told(output, capsys)
    assert lines[1] == "shards   5 of an unknown number of done, 0 running, 0 failed"
    assert f"note     {tmp_path}/moved, which it answers, holds no shard any more" in lines[-1]


def test_damaged_records_are_told_and_stop_nothing(small_pruned, tmp_path, capsys):
    output = small_pruned(tmp_path / "out")
    (output / "_commits" / "00000001.json").write_text('{"shard": 1')
    (output / "_failures").mkdir()
    (output / "_failures" / "00000001.json").write_text("{")
    assert Artifact(output).finished
    lines = told(output, capsys)
    assert lines[0].endswith(": stopped")
    assert "damaged  the commit records of 00000001; the next run does these shards again" in lines


def test_a_folder_without_a_job_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no _job.json; name the --output of a job that has begun"):
        job_status.main(["--output", str(tmp_path / "none")])
    assert os.listdir(tmp_path) == []


def test_an_owner_who_let_go_is_named_no_more(tmp_path):
    artifact = Artifact(tmp_path)
    assert artifact.owner() is None
    with artifact.locked():
        owner = artifact.owner()
        assert owner is not None
        assert (owner.process, owner.host) == (os.getpid(), socket.gethostname())
    assert artifact.owner() is None
    (tmp_path / "_lock").write_text("process 7 on a host, as an older version wrote it")
    assert artifact.owner() is None


def test_lines_of_a_run_with_a_rate(small_pruned, tmp_path):
    found = look(small_pruned(tmp_path / "out"))
    now = 1000.0
    running = JobStatus(**{
        **vars(found), "state": State.RUNNING, "owner": OwnerRecord(7, "h", now - 3661), "shards": 9, "total": 27,
        "rate": 0.5, "eta_sec": 42.0, "last_commit": now - 5, "shards_running": {n: "encode" for n in range(2, 14)},
    })  # fmt: skip
    lines = lines_of(running, now)
    assert lines[0].endswith(": running (process 7 on h, begun 1:01:01 ago)")
    assert "rate     0.5 images/s since the first shard of this run, 0:42 left at that rate" in lines
    assert "last     a shard was committed 0:05 ago" in lines
    assert sum(line.startswith("running") for line in lines) == 10
