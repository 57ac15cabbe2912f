"""Reads of the corpus that fail: in passing, nobody notices, on any worker; for good, it is told and done later.

A library preloaded into the job, and all workers it starts, makes the system's read calls fail (`failing_reads.c`).
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_tools import data_of, differing, facts_of, prune_command, rows_lost_and_doubled, rows_of, run_command
from forking import Forking

from benchmarks.synthetic import make_corpus

SETTINGS = {"max_tokens": "16", "shard_size": 4, "features": "both"}


class FailingReads:
    """Runs the prune job with reads that fail by a rule: on Ray, or all in a process that is forked from one.

    Args:
        folder: for the library.
    """

    def __init__(self, folder: Path) -> None:
        self._library = folder / "failing_reads.so"
        source = Path(__file__).with_name("failing_reads.c")
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("no C compiler here to build the library that makes reads fail")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(self._library), str(source), "-ldl"], check=True)
        self._log = folder / "failures"

    @contextmanager
    def forking(self) -> Iterator[None]:
        """The process to fork from is there for the time of the block."""
        with Forking({**os.environ, **self._preload}) as self._forking:
            yield

    @property
    def _preload(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "FAILING_READS_LOG": str(self._log)}

    def run(self, command: list[str], **rule: object) -> subprocess.CompletedProcess[str]:
        """The job under a rule (`path=`, `every=`, ...); asserts that reads failed and no traceback was shown."""
        self._log.unlink(missing_ok=True)
        rules = {f"FAILING_READS_{name.upper()}": str(value) for name, value in rule.items()}
        python, how, *program = command
        assert (python, how) == (sys.executable, "-m")
        if "tests.in_this_process" in program:
            done = self._forking.run(program, rules, timeout_sec=300)
        else:
            done = run_command(command, timeout_sec=300, env={**os.environ, **self._preload, **rules})
        assert self._log.exists(), "no read failed"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    @property
    def failed(self) -> int:
        return self._log.stat().st_size


@pytest.fixture(scope="module")
def failing_reads(tmp_path_factory) -> Iterator[FailingReads]:
    failing = FailingReads(tmp_path_factory.mktemp("preload"))
    with failing.forking():
        yield failing


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    """60 samples in 3 tars; one damaged image, one repeated one."""
    return make_corpus(tmp_path_factory.mktemp("io"), 60, seed=5, samples_per_tar=20, with_faults=True)


@pytest.fixture(scope="module")
def undisturbed(prune, corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    prune(output, corpus=(corpus,), **SETTINGS)
    return output


def command_of(corpus: str, model: str, output: Path, *more: str) -> list[str]:
    return prune_command(corpus, model, output, *more, on_ray=False)


def member(corpus: str, tar: int, name: str) -> tuple[str, tarfile.TarInfo]:
    """A tar of the corpus, and where a member of it lies."""
    path = corpus.replace("*", f"{tar:06d}")
    with tarfile.open(path) as archive:
        return path, archive.getmember(name)


def manifest_of(corpus: str, folder: Path) -> str:
    """The first tar's samples as a manifest and files."""
    with tarfile.open(corpus.replace("*", "000000")) as archive:
        archive.extractall(folder, filter="data")
    names = sorted(path.name for path in folder.glob("*.jpg"))
    lines = [f'{{"image": "{name}", {(folder / name).with_suffix(".json").read_text()[1:]}\n' for name in names]
    (folder / "m.jsonl").write_text("".join(lines))
    return str(folder / "m.jsonl")


@pytest.mark.parametrize(
    ("every", "burst", "on_ray"),
    [
        (7, 2, False),
        *(
            pytest.param(n, b, True, marks=[pytest.mark.slow, pytest.mark.ray])
            for n, b in ((7, 2), (2, 1), (5, 3), (50, 1))
        ),
    ],
)
def test_reads_that_fail_in_passing_change_no_byte(
    every, burst, on_ray, failing_reads, corpus, undisturbed, tiny_llava, tmp_path
):
    command = prune_command(corpus, tiny_llava, tmp_path / "out", on_ray=on_ray)
    done = failing_reads.run(command, path="/made-", every=every, burst=burst)
    assert done.returncode == 0, done.stderr
    assert failing_reads.failed >= 2
    assert differing(data_of(tmp_path / "out"), data_of(undisturbed)) == []


@pytest.mark.parametrize(
    "name", ["00000025.jpg", *(pytest.param(f"000000{n}.jpg", marks=pytest.mark.slow) for n in (20, 39, 36))]
)
def test_an_image_that_cannot_be_read_is_one_row_until_redo(
    name, failing_reads, prune, corpus, undisturbed, tiny_llava, tmp_path
):
    """Bytes in the middle of an image, of one that is damaged anyway (36) and of a tar's first and last one."""
    path, image = member(corpus, 1, name)
    begin = image.offset_data + 600
    output = tmp_path / "out"
    broken = {"path": path, "from": begin, "to": begin + 1}
    done = failing_reads.run(command_of(corpus, tiny_llava, output), **broken)
    assert done.returncode == 0, done.stderr
    told = [row for row in rows_of(output, "errors") if row["source"] == f"{Path(path).name}/{name}"]
    assert [row["reason"] for row in told] == ["read_error"]
    assert f"can't be read at byte {begin}" in told[0]["message"]
    expected = Counter(row["source"] for row in rows_of(undisturbed, "errors"))
    expected[f"{Path(path).name}/{name}"] = 1
    assert Counter(row["source"] for row in rows_of(output, "errors")) == expected

    prune(output, corpus=(corpus,), redo_errors=True, **SETTINGS)
    assert rows_lost_and_doubled(output, facts_of(corpus)) == (0, 0)
    assert (output / "_SUCCESS").exists()


@pytest.mark.parametrize(
    "where", ["header", *(pytest.param(part, marks=pytest.mark.slow) for part in ("record", "first", "end", "whole"))]
)
def test_a_tar_that_cannot_be_read_to_its_end_is_left_out_until_it_can(
    where, failing_reads, prune, corpus, tiny_llava, tmp_path
):
    tar = 2
    path, image = member(corpus, tar, "00000050.jpg")
    _, record = member(corpus, tar, "00000050.json")
    _, last = member(corpus, tar, "00000059.json")
    region = {
        "header": (image.offset, image.offset_data),
        "record": (record.offset_data, record.offset_data + 10),
        "first": (0, 1),
        "end": (last.offset_data + 512, os.path.getsize(path)),
        "whole": (0, os.path.getsize(path)),
    }[where]
    output = tmp_path / "out"
    broken = {"path": path, "from": region[0], "to": region[1]}
    done = failing_reads.run(command_of(corpus, tiny_llava, output), **broken)
    assert done.returncode == 1, done.stderr
    assert f"left out: {path} can't be read at byte {region[0]}: Input/output error" in done.stderr
    assert "1 input file is left out" in done.stderr
    assert "run the same command again" in done.stderr
    assert not (output / "_SUCCESS").exists()

    prune(output, corpus=(corpus,), redo_errors=True, **SETTINGS)
    assert (output / "_SUCCESS").exists()
    assert rows_lost_and_doubled(output, facts_of(corpus)) == (0, 0)
    said = prune(output, corpus=(corpus,), **SETTINGS)
    assert any("nothing to do" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["image", "header"])
def test_a_redo_while_it_is_still_broken_says_the_same_and_ends(
    part, failing_reads, prune, corpus, tiny_llava, tmp_path
):
    path, image = member(corpus, 2, "00000050.jpg")
    begin = image.offset if part == "header" else image.offset_data + 600
    output = tmp_path / "out"
    broken = {"path": path, "from": begin, "to": begin + 1}
    first = failing_reads.run(command_of(corpus, tiny_llava, output), **broken)
    before = data_of(output)
    again = failing_reads.run(command_of(corpus, tiny_llava, output, "--redo-errors"), **broken)
    assert again.returncode == first.returncode == (1 if part == "header" else 0), again.stderr
    assert differing(data_of(output), before) == []
    prune(output, corpus=(corpus,), redo_errors=True, **SETTINGS)
    assert rows_lost_and_doubled(output, facts_of(corpus)) == (0, 0)


@pytest.mark.slow
def test_an_input_that_stays_unreadable_can_be_dropped_to_finish(failing_reads, prune, corpus, tiny_llava, tmp_path):
    path, image = member(corpus, 2, "00000050.jpg")
    broken = {"path": path, "from": image.offset, "to": image.offset_data}
    assert failing_reads.run(command_of(corpus, tiny_llava, tmp_path / "out"), **broken).returncode == 1
    rest = corpus.replace("*", "{000000..000001}")
    prune(tmp_path / "out", corpus=(rest,), **SETTINGS)
    assert (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.slow
def test_inputs_none_of_which_can_be_read_stop_the_job_in_one_sentence(failing_reads, corpus, tiny_llava, tmp_path):
    broken = {"path": "/made-", "from": 0, "to": 1 << 40}
    done = failing_reads.run(command_of(corpus, tiny_llava, tmp_path / "out"), **broken)
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "can't be read at byte 0: Input/output error; nothing was indexed: mend it and run again" in error


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["m.jsonl", "00000003.jpg"])
def test_manifests(broken, failing_reads, prune, corpus, tiny_llava, tmp_path):
    """A manifest that can't be read is left out (here nothing else is there); a file that it names is a row."""
    manifest = manifest_of(corpus, tmp_path / "files")
    output = tmp_path / "out"
    rule = {"path": f"/files/{broken}", "from": 600, "to": 601}
    done = failing_reads.run(command_of(manifest, tiny_llava, output), **rule)
    if broken == "m.jsonl":
        assert done.returncode == 2, done.stderr
        assert "m.jsonl can't be read at byte 600: Input/output error" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "read_error" in {row["reason"] for row in rows_of(output, "errors")}
    prune(output, corpus=(manifest,), redo_errors=True, **SETTINGS)
    assert "read_error" not in {row["reason"] for row in rows_of(output, "errors")}
    assert len(rows_of(output, "prompts")) == 40
