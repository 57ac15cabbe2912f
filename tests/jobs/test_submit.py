"""`ray job submit` to a real cluster with token authentication, started and stopped here; the code travels along."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.answer.job import answer_corpus
from pipeline.answer.settings import AnswerSettings

pytestmark = pytest.mark.ray
REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_worker_niceness"},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the dashboard of a head node of its own."""
    port, dashboard, agent = free_ports(3)
    log = tmp_path_factory.mktemp("cluster") / "head.log"
    command = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--include-dashboard=true",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    with open(log, "wb") as stream, subprocess.Popen(command, env=environment, stdout=stream, stderr=stream) as head:
        try:
            deadline = time.monotonic() + 120
            while not answers(f"{address}/api/jobs/"):
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield address
        finally:
            # Asked politely, it waits half a minute for some of its processes; without it, its agent waits as long, and
            # busily.
            for process in (head.pid, *descendants(head.pid)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            head.wait(60)


def descendants(process: int) -> list[int]:
    """The processes that it started, and those that these started."""
    try:
        started = [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return [below for one in started for below in (one, *descendants(one))]


def answers(url: str, token: str = TOKEN) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def data_of(output: Path) -> dict[str, bytes]:
    files = [path for table in ("selections", "prompts", "features", "payloads") for path in (output / table).iterdir()]
    assert len(files) == 8
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def answers_in(output: Path) -> list[dict]:
    """Rows of answers, without the seconds, which no two runs share."""
    files = sorted((output / "answers").iterdir())
    assert len(files) == 2
    return [row for file in files for row in pq.read_table(file).drop_columns("seconds").to_pylist()]


def submit(address: str, environment: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess:
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(REPO), "--", *entrypoint]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def pruned_here(prune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("here") / "pruned"
    prune(output, limit=12, shard_size=8, max_tokens="4")
    return output


def assert_succeeded(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr


def test_a_submitted_job_is_followed_to_its_end(cluster, environment, pruned_here, tiny_llava, scenes_tars, tmp_path):
    assert not answers(f"{cluster}/api/jobs/", token="wrong" * 10)
    job = ["python", "jobs/prune_corpus.py", "--corpus", scenes_tars, "--model", tiny_llava, "--limit", "12"]
    job += ["--max-tokens", "4", "--shard-size", "8", "--output", str(tmp_path / "out")]
    assert_succeeded(submit(cluster, environment, *job))
    assert data_of(tmp_path / "out") == data_of(pruned_here)


@pytest.mark.slow
def test_a_submitted_answer_job_is_followed_to_its_end(
    cluster, environment, pruned_here, without_ray, tiny_llava, tmp_path
):
    job = ["python", "jobs/answer_corpus.py", "--pruned", str(pruned_here), "--model", tiny_llava]
    job += ["--tokens", "2", "--max-new-tokens", "4", "--output", str(tmp_path / "out")]
    assert_succeeded(submit(cluster, environment, *job))
    settings = {"tokens": "2", "max_new_tokens": 4, "output": str(tmp_path / "here")}
    with without_ray():
        answer_corpus(AnswerSettings(pruned=str(pruned_here), model=tiny_llava, **settings), lambda _: None)
    assert answers_in(tmp_path / "out") == answers_in(tmp_path / "here")


def test_a_job_that_fails_is_told_and_the_code_that_ran_is_the_working_directorys(cluster, environment):
    shown = submit(cluster, environment, "python", "-c", "import pipeline; raise SystemExit(pipeline.__file__)")
    assert shown.returncode != 0
    assert "failed" in shown.stdout + shown.stderr
    assert "working_dir_files" in shown.stdout + shown.stderr
