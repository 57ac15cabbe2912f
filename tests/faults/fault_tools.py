"""What the fault tests share: what a corpus holds, what an artifact holds, which process does what."""

import glob
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
from PIL import Image

from jobs.console import run
from tests.in_this_process import in_this_process

REPO = Path(__file__).resolve().parents[2]
DATA_FOLDERS = ("selections", "prompts", "errors", "features", "payloads")
NUM_SHARDS = 26  # one more than there are kinds of damage, and two
RUN_SETTINGS: dict[str, Any] = {
    "images": 104,
    "prune": {"max_tokens": "16", "shard_size": 4, "features": "both"},
    "answer": {"tokens": "8", "max_new_tokens": 4, "workers": 1},
}
# Of the many kills of `make faults`, which need a run that lasts.
MANY_SHARDS = 40
MANY_SETTINGS: dict[str, Any] = {
    **RUN_SETTINGS,
    "images": 320,
    "prune": {**RUN_SETTINGS["prune"], "shard_size": 8},
    "answer": {**RUN_SETTINGS["answer"], "workers": None},
}


@dataclass(frozen=True)
class Facts:
    """What a corpus holds, read by its own rules and decoded with Pillow: every list sorted."""

    images: list[str]  # sha256 of the distinct images that decode
    prompts: list[str]  # ids
    failed: list[str]  # samples whose image does not decode


@dataclass(frozen=True)
class Undisturbed:
    """A prune job that nobody disturbed."""

    corpus: str
    facts: Facts  # of the corpus
    settings: dict[str, Any]  # of both jobs
    num_shards: int
    output: Path


def facts_of(pattern: str) -> Facts:
    """Read the tars that `pattern` names."""
    images, prompts, failed = set(), [], []
    for path in sorted(glob.glob(pattern)):
        with tarfile.open(path) as archive:
            for member in archive:
                data = archive.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".json"):
                    prompts += [prompt["id"] for prompt in json.loads(data)["prompts"]]
                    continue
                try:
                    Image.open(io.BytesIO(data)).load()
                    images.add(hashlib.sha256(data).hexdigest())
                except OSError:
                    failed.append(f"{Path(path).name}/{member.name}")
    return Facts(sorted(images), sorted(prompts), sorted(failed))


def rows_of(output: Path, table: str) -> list[dict[str, Any]]:
    """Rows of a table, in shard order, found through the manifest."""
    manifest = json.loads((output / "manifest.json").read_text())
    return [row for s in manifest["shards"] for row in pq.read_table(output / s["files"][table]["path"]).to_pylist()]


def lost_and_doubled(expected: Iterable[str], found: Iterable[str]) -> tuple[int, int]:
    """How many of what is expected are not found, and how many are found too often."""
    wanted, there = Counter(expected), Counter(found)
    return (wanted - there).total(), (there - wanted).total()


def rows_lost_and_doubled(output: Path, facts: Facts) -> tuple[int, int]:
    """Rows that the corpus asks for and the artifact lacks, and rows it has too many, over all tables."""
    lost = doubled = 0
    for table, column, expected in (
        ("selections", "image_id", facts.images),
        ("features.parquet", "image_id", facts.images),
        ("prompts", "prompt_id", facts.prompts),
        ("errors", "source", facts.failed),
    ):
        fewer, more = lost_and_doubled(expected, (row[column] for row in rows_of(output, table)))
        lost, doubled = lost + fewer, doubled + more
    return lost, doubled


def data_of(output: Path) -> dict[str, bytes]:
    """Bytes of every data file by its path; temporary files, which no reader looks at, left out."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for folder in DATA_FOLDERS
        for path in (output / folder).iterdir()
        if not path.name.startswith(".")
    }


def answers_of(output: Path) -> dict[str, bytes]:
    """Rows of every file of answers by its path; without the seconds, which no two runs share."""
    return {
        path.name: pq.read_table(path).drop_columns("seconds").to_pydict().__repr__().encode()
        for path in (output / "answers").glob("[!.]*")
    }


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of the files in which two outputs differ (a plain == would print the bytes)."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def commits(output: Path) -> int:
    """Shards committed so far."""
    folder = output / "_commits"
    return len([p for p in folder.iterdir() if p.suffix == ".json"]) if folder.is_dir() else 0


def prune_command(
    corpus: str,
    model: str,
    output: Path,
    *more: str,
    on_ray: bool = True,
    settings: dict[str, Any] = RUN_SETTINGS,
) -> list[str]:
    """The command line of the prune job with these settings; the work is done on Ray, or in the program itself."""
    program = ["-m", "jobs.prune_corpus"] if on_ray else ["-m", "tests.in_this_process", "jobs.prune_corpus"]
    return [
        sys.executable, *program, "--corpus", corpus, "--model", model, "--output", str(output),
        *_options(settings["prune"]), *more,
    ]  # fmt: skip


def answer_command(pruned: Path, model: str, output: Path, settings: dict[str, Any]) -> list[str]:
    """The command line that answers, with these settings, what a prune job gave."""
    return [
        sys.executable, "-m", "jobs.answer_corpus", "--pruned", str(pruned), "--model", model,
        "--output", str(output), *_options(settings["answer"]),
    ]  # fmt: skip


def _options(settings: dict[str, Any]) -> list[str]:
    return [part for k, v in settings.items() if v is not None for part in (f"--{k.replace('_', '-')}", str(v))]


def run_command(command: list[str], timeout_sec: float = 600, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository's root to its end."""
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=timeout_sec, **options)


def run_here(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command of `prune_command(on_ray=False)` as `run_command` runs it, but in this process."""
    (*_, module), arguments = command[: command.index("--corpus")], command[command.index("--corpus") :]
    said, errors = io.StringIO(), io.StringIO()
    with (
        in_this_process(),
        mock.patch.object(sys, "argv", [module, *arguments]),
        redirect_stdout(said),
        redirect_stderr(errors),
    ):
        try:
            run(import_module(module).COMMAND)
        except SystemExit as leaving:
            status = leaving.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(command, status, said.getvalue(), errors.getvalue())


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stream:
        return int(stream.read().rpartition(b")")[2].split()[1])


def workers(ancestor: int, words: str) -> Iterator[int]:
    """Ray workers below process `ancestor` whose title holds `words`: those that do that work at this moment."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as stream:  # OSError: it ended meanwhile
            title = stream.read(200)
            if not title.startswith(b"ray::") or words.encode() not in title:
                continue
            above = int(name)
            while above not in (0, ancestor):
                above = _parent(above)
            if above == ancestor:
                yield int(name)


def kill_a_worker(ancestor: int, words: str) -> int | None:
    """SIGKILL one worker that does the work named now; its pid, or None when there is none at this moment."""
    for pid in workers(ancestor, words):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return pid
    return None


def wait_for(condition: Any, timeout_sec: float, every_sec: float = 0.005) -> bool:
    """Poll until `condition()` holds; False when it did not in time."""
    deadline = time.monotonic() + timeout_sec
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(every_sec)
    return False
