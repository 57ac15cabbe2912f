"""Job record, commits, manifest, lock: what a folder promises."""

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.errors import UserError
from pipeline.storage import LocalStore
from schemas.columns import table_of
from schemas.records import CommitRecord, FailureRecord, JobRecord, RecordError
from schemas.selections import ErrorRow
from schemas.tables import SCHEMA_VERSION

REPO = Path(__file__).resolve().parents[2]
JOB = JobRecord("prune", SCHEMA_VERSION, {"seed": 0, "max_tokens": "64"}, {"config": "abc"}, {"torch": "1"})


def commit(artifact: Artifact, shard: int) -> CommitRecord:
    error = ErrorRow(source="s", prompt_id=None, image_id=None, reason="r", message="m", shard=shard)
    entry = write_table(artifact.store, "errors", shard, table_of(ErrorRow, [error]))
    record = CommitRecord(shard, {"errors": entry}, {"samples": 1}, {})
    artifact.commit(record)
    return record


def test_the_same_job_is_adopted_and_another_refused_with_the_difference(tmp_path):
    artifact = Artifact(tmp_path / "out")
    artifact.adopt_job(JOB)
    assert artifact.adopt_job(dataclasses.replace(JOB, environment={"torch": "2"})).environment == {"torch": "1"}
    commit(artifact, 0)
    with pytest.raises(UserError, match=r"seed: 0 -> 1"):
        artifact.adopt_job(dataclasses.replace(JOB, settings={"seed": 1, "max_tokens": "64"}))
    with pytest.raises(UserError, match=r"model\.config: 'abc' -> 'xyz'"):
        artifact.adopt_job(dataclasses.replace(JOB, model={"config": "xyz"}))


def test_a_job_without_an_index_binds_nobody_but_one_whose_shards_may_be_written_does(tmp_path):
    artifact = Artifact(tmp_path / "out")
    artifact.adopt_job(JOB)
    other = dataclasses.replace(JOB, settings={"seed": 1, "max_tokens": "64"})
    assert artifact.adopt_job(other).settings["seed"] == 1
    assert artifact.read_job() == other
    artifact.store.put("_index/index.json", b"{}")
    with pytest.raises(UserError, match=r"seed: 1 -> 0"):
        artifact.adopt_job(JOB)
    answers = Artifact(tmp_path / "answers")
    answers.adopt_job(dataclasses.replace(JOB, kind="answer"))
    with pytest.raises(UserError, match=r"seed: 0 -> 1"):
        answers.adopt_job(dataclasses.replace(other, kind="answer"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"no _job\.json"):
        Artifact(tmp_path).adopt_job(JOB)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_pending_shards_are_those_without_a_sound_commit(tmp_path):
    artifact = Artifact(tmp_path)
    for shard in range(6):
        commit(artifact, shard)
    resume = artifact.resume(7)
    assert (resume.pending, resume.reasons) == ([6], [])
    (tmp_path / "_commits" / "00000001.json").write_text('{"shard": 1, "fil')
    (tmp_path / "errors" / "part-00000002.parquet").unlink()
    with open(tmp_path / "errors" / "part-00000003.parquet", "ab") as stream:
        stream.write(b"x")
    resume = artifact.resume(6)
    assert resume.pending == [1, 2, 3]
    assert [reason.split(" is done again")[0] for reason in resume.reasons] == [
        "shard 00000001",
        "shard 00000002",
        "shard 00000003",
    ]


def test_a_flipped_byte_is_found_by_its_tag_or_by_a_deep_check(tmp_path):
    artifact = Artifact(tmp_path)
    record = commit(artifact, 0)
    path = tmp_path / "errors" / "part-00000000.parquet"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert "sha256" in str(artifact.problem_of(record))
    os.utime(path, ns=(int(record.files["errors"].tag),) * 2)
    assert artifact.problem_of(record) is None
    assert "sha256" in str(artifact.problem_of(record, deep=True))


def test_a_copied_artifact_is_as_good_as_the_original(tmp_path):
    artifact = Artifact(tmp_path)
    record = commit(artifact, 0)
    os.utime(tmp_path / record.files["errors"].path, ns=(1, 1))
    assert artifact.problem_of(record) is None


def test_a_commit_record_can_not_point_outside(tmp_path):
    artifact = Artifact(tmp_path)
    record = commit(artifact, 0)
    entry = dataclasses.replace(record.files["errors"], path="../../etc/passwd")
    artifact.commit(dataclasses.replace(record, files={"errors": entry}))
    assert artifact.resume(1).pending == [0]


HOLD_LOCK = """
import sys, time
from pathlib import Path
from pipeline.artifact.artifact import Artifact
with Artifact(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_names_its_owner_and_goes_with_it(tmp_path):
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"in use by process {process.pid}"), Artifact(tmp_path).locked():
            pass
        process.kill()
    with Artifact(tmp_path).locked():
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_not_called_in_use(tmp_path, monkeypatch, number):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=rf"can't be locked: {os.strerror(number)}") as caught,
        Artifact(tmp_path).locked(),
    ):
        pass
    assert "in use" not in str(caught.value)


def test_a_renamed_commit_record_is_damaged(tmp_path):
    artifact = Artifact(tmp_path)
    commit(artifact, 0)
    (tmp_path / "_commits" / "00000001.json").write_bytes((tmp_path / "_commits" / "00000000.json").read_bytes())
    assert artifact.resume(2).pending == [1]


def test_a_shard_made_from_other_files_is_pending_and_outdated(tmp_path):
    artifact = Artifact(tmp_path)
    for shard, sources in enumerate([{"a": "1"}, {"a": "1", "b": "2"}, {"b": "3"}, {}]):
        artifact.commit(dataclasses.replace(commit(artifact, shard), sources=sources))
    assert artifact.resume(4).pending == []
    resume = artifact.resume(5, sources={"a": "1", "b": "2"})
    assert (resume.pending, resume.outdated, resume.damaged, resume.reasons) == ([2, 3, 4], [2, 3], [2, 3], [])


class CountingStore(LocalStore):
    """Counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: Counter[str] = Counter()

    def stat(self, key: str):
        self.asked["stat"] += 1
        return super().stat(key)

    def list(self, prefix: str = ""):
        self.asked[f"list {prefix}"] += 1
        return super().list(prefix)

    def walk(self, prefix: str = ""):
        self.asked[f"walk {prefix}"] += 1
        return super().walk(prefix)

    def read(self, key: str) -> bytes:
        self.asked[f"read {key}"] += 1
        return super().read(key)


def test_resuming_lists_the_store_once_and_reads_each_record_once(tmp_path):
    artifact = Artifact(tmp_path)
    for shard in range(5):
        commit(artifact, shard)
    store = CountingStore(tmp_path)
    assert Artifact(store).resume(6).pending == [5]
    records = {f"read _commits/{shard:08d}.json": 1 for shard in range(5)}
    assert store.asked == {"walk ": 1, "walk _commits/": 1, "walk errors/": 1, **records}


def test_a_file_is_hashed_only_where_its_tag_is_another(tmp_path):
    record = commit(Artifact(tmp_path), 0)
    path = tmp_path / record.files["errors"].path
    store = CountingStore(tmp_path)
    with Artifact(store).opened(record, "errors") as stream:
        assert stream.read() == path.read_bytes()
    os.utime(path, ns=(1, 1))
    with Artifact(store).opened(record, "errors") as stream:
        assert stream.read() == path.read_bytes()
    path.write_bytes(b"x" * record.files["errors"].size_bytes)
    with pytest.raises(RecordError, match="differs from the sha256"), Artifact(store).opened(record, "errors"):
        pass


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(tmp_path):
    artifact = Artifact(tmp_path)
    record = commit(artifact, 0)
    before = (tmp_path / record.files["errors"].path).read_bytes()
    with artifact.opened(record, "errors") as stream:
        artifact.store.put(record.files["errors"].path, b"another")
        assert stream.read() == before


def test_why_a_shard_was_given_up_is_kept_until_it_is_committed(tmp_path):
    artifact = Artifact(tmp_path)
    failure = FailureRecord(3, 1.5, "given_up", "encode", "stage encode: it broke\nTraceback ...")
    artifact.give_up(failure)
    path = tmp_path / "_failures" / "00000003.json"
    assert json.loads(path.read_text()) == dataclasses.asdict(failure)
    commit(artifact, 2)
    assert path.exists()
    commit(artifact, 3)
    assert not path.exists()
    artifact.give_up(failure)  # of a worker that died between its commit and its word of it
    artifact.finish({})
    assert not path.parent.exists()


def test_a_folder_that_holds_only_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    with pytest.raises(UserError, match=r"holds files but no _job\.json"):
        Artifact(tmp_path).adopt_job(JOB)


def test_a_record_half_written_by_a_killed_first_run_is_no_foreign_file(tmp_path):
    (tmp_path / "._job.json.0123.tmp").write_bytes(b"{")
    assert Artifact(tmp_path).check_job(JOB) is None


@pytest.mark.parametrize(("there", "message"), [(True, "holds no _job.json"), (False, "is empty, or does not exist")])
def test_what_is_no_artifact_is_told(there, message, tmp_path):
    if there:
        (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=rf"--pruned {tmp_path}: {message}; name the --output of a prune job"):
        Artifact(tmp_path).require_job("prune", "--pruned")
