"""SIGKILL while a job's corpus, model and output lie in a bucket: the output is that of an undisturbed run on disk.

A killed driver: the same command run again waits until its lease has run out, and completes. A killed model actor: the
same run completes. Workers share nothing with the driver but the bucket and what the environment says of it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_tools import REPO, differing, kill_a_worker, wait_for

from pipeline.storage.local import LocalStore
from pipeline.storage.places import folder_at

LIFE = 2.0  # of the lease, in seconds
SHARDS = 4
SETTINGS = {"max_tokens": "16", "shard_size": 4, "limit": 16}
OPTIONS = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
DATA = ("selections/", "prompts/", "errors/", "features/")
DRIVER = f"""
import runpy, sys
from pipeline.storage import lease
from tests.in_this_process import in_this_process
lease.LEASE_SEC = {LIFE}
sys.argv[0] = "jobs.prune_corpus"
with in_this_process():
    runpy.run_module("jobs.prune_corpus", run_name="__main__", alter_sys=True)
"""


def data_in(address: str) -> dict[str, bytes]:
    """The data files of an artifact, by their keys."""
    store = folder_at(address)
    keys = [entry.key for entry in store.walk() if entry.key.startswith(DATA)]
    return dict(zip(keys, store.read_all(keys), strict=True))


def committed(address: str) -> list[str]:
    return [entry.key for entry in folder_at(address).list("_commits/")]


def has_begun(output: str, least: int) -> bool:
    """Whether a driver works there and that many shards are committed."""
    return len(committed(output)) >= least and folder_at(output).holder("_lock") != ""


def found_one_or_ended(driver: subprocess.Popen, kills: list[int | None]) -> bool:
    """Kill a model actor at its work, if there is one; whether that was done or the driver has ended."""
    kills.append(kill_a_worker(os.getpid(), "EncodeShards"))
    return kills[-1] is not None or driver.poll() is not None


@pytest.fixture(scope="module")
def undisturbed(prune: Callable[..., list[str]], made_once) -> dict[str, bytes]:
    return data_in(str(made_once("pruned-by-4", lambda output: prune(output, **SETTINGS))))


@pytest.fixture
def in_bucket(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llava: str) -> list[str]:
    """The corpus and the model in a bucket: the arguments of a job over them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for folder, address in ((REPO / "examples" / "scenes", "corpus"), (Path(tiny_llava), "model")):
        for entry in LocalStore(folder).walk():
            folder_at(f"{s3}/{address}").put(entry.key, (folder / entry.key).read_bytes())
    return ["--corpus", f"{s3}/corpus/scenes-*.tar", "--model", f"{s3}/model", *OPTIONS]


@pytest.mark.long
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_driver_is_followed_by_one_that_completes_its_work(
    kills, in_bucket, s3, undisturbed, prune, monkeypatch
):
    monkeypatch.setattr("pipeline.storage.lease.LEASE_SEC", LIFE)
    generator = random.Random(20261121)
    for number in range(kills):
        output = f"{s3}/out-{number}"
        least = 2 if kills == 1 else generator.randrange(SHARDS)
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, *in_bucket, "--output", output], cwd=REPO, stderr=subprocess.PIPE
        ) as driver:
            begun = wait_for(lambda out=output, n=least: has_begun(out, n), 120, 0.05)
            time.sleep(generator.random() * 0.3)
            driver.send_signal(signal.SIGKILL)
            _, said = driver.communicate()
        assert begun, said
        assert driver.returncode == -signal.SIGKILL, said
        before = {key: folder_at(output).read(key) for key in committed(output)}
        began = time.monotonic()
        told = prune(output, corpus=(in_bucket[1],), model=in_bucket[3], **SETTINGS)
        assert any("names another process" in line for line in told)
        assert time.monotonic() - began >= LIFE / 2
        assert differing(data_in(output), undisturbed) == []
        assert {key: folder_at(output).read(key) for key in before} == before, "what was committed is not done again"
        assert folder_at(output).stat("_SUCCESS") is not None
        assert folder_at(output).holder("_lock") == ""


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_model_actor_is_started_again(kills, in_bucket, s3, undisturbed, joining_ray, object_server):
    """On a Ray whose processes know of the bucket by the job's environment alone."""
    of_job = {**object_server.environment, "HF_HOME": os.environ["HF_HOME"]}
    environment = {
        **{name: value for name, value in joining_ray.items() if not name.startswith("AWS_")},
        **of_job,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": of_job}}),
    }
    for number in range(kills):
        output = f"{s3}/out-{number}"
        command = [sys.executable, "-m", "jobs.prune_corpus", *in_bucket, "--output", output]
        with subprocess.Popen(command, cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True) as driver:
            kills_of: list[int | None] = []
            wait_for(lambda of=driver, to=kills_of: found_one_or_ended(of, to), 240, 0.1)
            _, said = driver.communicate(timeout=300)
        assert kills_of[-1] is not None, f"nobody could be killed: {said}"
        assert driver.returncode == 0, said
        assert differing(data_in(output), undisturbed) == []
        assert folder_at(output).stat("_SUCCESS") is not None
