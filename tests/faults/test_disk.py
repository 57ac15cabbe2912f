"""A full disk and write errors: one clear sentence, every committed shard whole, the same command resumes."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_tools import (
    DATA_FOLDERS,
    NUM_SHARDS,
    RUN_SETTINGS,
    commits,
    data_of,
    differing,
    prune_command,
    rows_lost_and_doubled,
    run_command,
    run_here,
)

from jobs import prune_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Index, read_index, write_index
from pipeline.budget import parse_budget
from pipeline.cluster.attempts import Policy
from pipeline.cluster.outcomes import Status
from pipeline.errors import UserError
from pipeline.prune.encode import EncodeSettings, EncodeShards
from pipeline.prune.read import ReadSettings, read_shard
from pipeline.prune.select import SelectSettings
from pipeline.prune.write import WriteSettings, write_shard, write_stage
from pipeline.report.query import ask, connect
from pipeline.storage import LocalStore


@pytest.fixture
def small_disk(tmp_path):
    """Mount a tmpfs of a given size; `grow` makes room on it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    class Disk:
        root = folder
        mounted = False

        def mount(self, size: str) -> None:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
            )
            if done.returncode:
                pytest.skip(f"mounting a small tmpfs is not permitted here ({done.stderr.strip()})")
            self.mounted = True

        def grow(self, size: str) -> None:
            subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root; the write errors below do not")
    disk = Disk()
    yield disk
    if disk.mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def assert_committed_shards_are_whole(output: Path, calm: Path) -> None:
    """Every file under its final name, committed or not, is complete, and every commit record's files are there."""
    expected = data_of(calm)
    for folder in DATA_FOLDERS:
        for path in (output / folder).glob("[!.]*"):
            assert path.read_bytes() == expected[str(path.relative_to(output))], path
    artifact = Artifact(output)
    assert [artifact.problem_of(record, deep=True) for record in artifact.commits()] == [None] * commits(output)


def assert_one_clear_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.rstrip().endswith(errors[0]), done.stderr
    for word in (*words, "run the same command again"):
        assert word in errors[0]


# 20 k: the index does not fit. The others: some of the shards do.
@pytest.mark.parametrize(
    ("size", "on_ray"),
    [
        ("20k", False),
        ("800k", False),
        *(pytest.param(size, True, marks=[pytest.mark.slow, pytest.mark.ray]) for size in ("300k", "800k", "1500k")),
    ],
)
def test_a_full_disk_stops_the_job_and_room_resumes_it(
    size, on_ray, small_disk, prune, made_corpus, tiny_llava, calm, facts
):
    small_disk.mount(size)
    output = small_disk.root / "out"
    command = prune_command(made_corpus, tiny_llava, output, on_ray=on_ray)
    done = run_command(command) if on_ray else run_here(command)
    assert_one_clear_sentence(done, "No space left on device", str(output))
    full_at = commits(output)
    assert full_at < NUM_SHARDS
    assert full_at or size in ("20k", "300k")
    assert not (output / "_SUCCESS").exists()
    assert_committed_shards_are_whole(output, calm)
    if full_at:
        sql = "select count(distinct image_id) as images from images"
        kept = sum(record.files["selections"].rows for record in Artifact(output).commits())
        assert ask(connect(output), sql).to_pylist() == [{"images": kept}]

    with pytest.raises(UserError, match="No space left on device"):  # still full
        prune(output, corpus=(made_corpus,), **RUN_SETTINGS["prune"])

    small_disk.grow("64m")
    prune(output, corpus=(made_corpus,), **RUN_SETTINGS["prune"])
    assert differing(data_of(output), data_of(calm)) == []
    assert rows_lost_and_doubled(output, facts) == (0, 0)


@pytest.mark.usefixtures("work_here")
def test_one_shard_that_cannot_be_written_stops_no_other(made_corpus, tiny_llava, calm, facts, tmp_path, capfd):
    """A folder lies where a shard's file should: renaming fails for that shard alone, whoever runs the job."""
    output = shutil.copytree(calm, tmp_path / "out")
    Artifact(output).reopen()
    Artifact(output).forget([5, 7, 9])
    in_the_way = output / "features" / "part-00000007.parquet"
    in_the_way.unlink()
    in_the_way.mkdir()
    arguments = prune_command(made_corpus, tiny_llava, output, "--retries", "1")[3:]
    assert prune_corpus.main(arguments) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "1 shard was given up: 7;" in said
    assert "run the same command again" in said
    assert not (output / "_SUCCESS").exists()
    assert commits(output) == NUM_SHARDS - 1
    in_the_way.rmdir()
    assert prune_corpus.main(arguments) == 0
    assert differing(data_of(output), data_of(calm)) == []
    assert rows_lost_and_doubled(output, facts) == (0, 0)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond the size: writing fails as on a full disk, without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def encoded_shard(calm, tiny_llava):
    """Shard 3 of the corpus as the write stage gets it, made without Ray."""
    index = read_index(LocalStore(calm))
    assert index is not None
    encode = EncodeSettings(tiny_llava, "float32", 8, "model", SelectSettings(parse_budget("16", "")))
    return EncodeShards(encode)(read_shard(3, ReadSettings(index, tiny_llava, calm / "_stop")))


def test_a_write_that_fails_leaves_no_file(encoded_shard, calm, tmp_path):
    """At every size limit below the shard's largest file: an error, files only whole, no record; then it works."""
    sizes = sorted({path.stat().st_size for folder in DATA_FOLDERS for path in (calm / folder).glob("*-00000003.*")})
    settings = WriteSettings(tmp_path / "out", ("webdataset", "parquet"))
    for size in sizes:
        with largest_file(size - 1), pytest.raises(UserError, match=r"File too large.*run the same command again"):
            write_shard(encoded_shard, settings)
        written = [path for path in settings.root.rglob("*") if path.is_file()]
        assert [path for path in written if path.name.startswith(".") or path.parent.name == "_commits"] == []
        for path in written:
            assert path.read_bytes() == (calm / path.relative_to(settings.root)).read_bytes()
    write_shard(encoded_shard, settings)
    expected = {name: data for name, data in data_of(calm).items() if "-00000003." in name}
    assert differing(data_of(settings.root), expected) == []
    assert commits(settings.root) == 1


class FlakyDisk:
    """Flushing files to disk fails with EIO as often as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = 0
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, handle: int) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fsync(handle)


@pytest.fixture
def flaky_disk(monkeypatch) -> FlakyDisk:
    return FlakyDisk(monkeypatch)


def written(encoded_shard, root: Path) -> dict:
    settings = WriteSettings(root, ("webdataset", "parquet"), Policy(retries=2, pause_sec=0.01))
    (outcome,) = write_stage(encoded_shard, settings).to_pylist()
    return outcome


def test_io_errors_of_the_output_are_tried_again_then_told(encoded_shard, calm, flaky_disk, tmp_path):
    flaky_disk.failures = 2
    assert written(encoded_shard, tmp_path / "out")["status"] == Status.COMMITTED
    expected = {name: data for name, data in data_of(calm).items() if "-00000003." in name}
    assert differing(data_of(tmp_path / "out"), expected) == []

    flaky_disk.failures = 100
    outcome = written(encoded_shard, tmp_path / "other")
    assert outcome["status"] == Status.GIVEN_UP  # other shards go on
    failure = outcome["failure"]
    assert "can't be written: Input/output error" in failure.splitlines()[0]
    assert "tried 3 times" in failure
    assert [path for path in (tmp_path / "other").rglob("*") if path.is_file()] == []


def test_an_io_error_of_the_index_is_one_sentence(flaky_disk, tmp_path):
    flaky_disk.failures = 1
    with pytest.raises(
        UserError, match=r"index\.json can't be written: Input/output error.*run the same command again"
    ):
        write_index(Index(LocalStore(tmp_path), []))
