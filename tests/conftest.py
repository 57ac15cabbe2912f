"""Shared by the whole suite: the bundled model and corpus, one Ray, one pruned artifact a form.

`make test` runs some processes at once (pytest-xdist), each with whole files of tests, see `tests/processes.py`. Costly
artifacts are made once, by the process that needs them first. Most tests of jobs run them without Ray, see
`tests/in_this_process.py`. Tests on Ray carry the marker `ray`: those that take the fixture `ray_session` get it here,
those that start a program which starts Ray carry it themselves. The marker `long` keeps tests out of `make test-fast`:
whole jobs, and of the tests that run for every model family all but two, get it here.
"""

from tests.startup import sitecustomize  # isort: skip  # noqa: F401  # as in other processes: before what is large

import atexit
import fcntl
import gc
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: processes of tests share the processors
os.environ.setdefault("RAY_worker_niceness", "0")  # at 15, workers would get what tests beside leave over
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(512 << 20))  # for processes started from here: keep what large
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 << 20))  # tensors leave for the next, do not give it back
os.environ["PYTHONPATH"] = os.pathsep.join(  # for all processes that are started from here
    dict.fromkeys((str(Path(__file__).with_name("startup")), *os.environ.get("PYTHONPATH", "").split(os.pathsep)))
).rstrip(os.pathsep)

from jobs.console import quiet_libraries
from pipeline.families import FAMILIES
from tests.in_this_process import in_this_process
from tests.object_server import object_server, s3, started_object_server  # noqa: F401  # fixtures for every folder
from tests.small_artifacts import (  # noqa: F401  # fixtures for every folder
    as_version_1,
    small_answers,
    small_pruned,
    write_answers,
)

REPO = Path(__file__).resolve().parent.parent
FURTHER_FAMILIES = {*FAMILIES} - {"llava", "qwen2_5_vl"}
MadeOnce = Callable[[str, Callable[[Path], object]], Path]
quiet_libraries()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests on Ray and tests of jobs, and begin with their files: short ones fill up what processes have left."""
    for item in items:
        for fixture, marker in (("ray_session", "ray"), ("on_gpus", "ray"), ("without_ray", "long")):
            if fixture in item.fixturenames:  # type: ignore[attr-defined]
                item.add_marker(marker)
        of = getattr(item, "callspec", None)
        if item.path.parent.name == "families" and of and FURTHER_FAMILIES & set(of.id.split("-")):
            item.add_marker("long")
    short = [item for item in items if item.get_closest_marker("slow") is None]
    on_ray, long = ({item.path for item in short if item.get_closest_marker(name)} for name in ("ray", "long"))
    items.sort(key=lambda item: (item.path not in on_ray, item.path not in long))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """There is one Ray for all tests that need only some Ray."""
    from tests.processes import FilesScheduling  # here, because it needs pytest-xdist

    return FilesScheduling(config, log)


def pytest_collection_finish() -> None:
    """What was imported by now stays: no collection of garbage looks at it again, but the one as Python ends."""
    gc.freeze()
    atexit.register(gc.unfreeze)


@pytest.fixture(autouse=True)
def _no_ray_but_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test-fast` stays fast: a test without the marker can't start Ray."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("this test starts Ray: take the fixture ray_session, or carry the marker ray")

    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture(autouse=True)
def _no_test_changes_how_torch_computes() -> Iterator[None]:
    """A setting that a test left on would change bits of tests in other files, or not, by which came first."""
    yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
        pytest.fail("this test left torch.use_deterministic_algorithms on")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """One folder for all of the suite's processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One of the suite's processes at a time."""
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def made_once(shared_folder: Path) -> MadeOnce:
    """A folder that is filled by the first of the suite's processes that asks for it by this name."""

    def get(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = shared_folder / name, shared_folder / f"{name}.filled"
        with alone(shared_folder / f"{name}.lock"):
            if not filled.exists():
                assert not folder.exists(), f"another process failed to make {name}"
                fill(folder)
                filled.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def tiny_llava() -> str:
    return str(REPO / "examples" / "tiny-llava")


@pytest.fixture(scope="session")
def scenes_tars() -> str:
    return str(REPO / "examples" / "scenes" / "scenes-{000000..000002}.tar")


@pytest.fixture(scope="session")
def scenes_manifest() -> str:
    return str(REPO / "examples" / "scenes" / "scenes.jsonl")


@pytest.fixture(scope="session")
def ray_session(shared_folder: Path) -> Iterator[None]:
    """One private Ray for all tests that need it; stopped only because it was started here."""
    with alone(
        shared_folder / "ray.lock"
    ):  # Ray gives its processes 15 s to start, too little for two on a busy machine
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def joining_ray(ray_session: None) -> dict[str, str]:
    """The environment of a program that joins the Ray of `ray_session` where it would start one."""
    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="session")
def without_ray() -> Callable[..., AbstractContextManager[None]]:
    """Makes blocks in which jobs do their work in this process."""
    return in_this_process


@pytest.fixture
def work_here(without_ray: Callable[..., AbstractContextManager[None]]) -> Iterator[None]:
    """Jobs that the test starts do their work in this process."""
    with without_ray():
        yield


@pytest.fixture(scope="session")
def prune_on_ray(ray_session: None, tiny_llava: str, scenes_tars: str) -> Callable[..., list[str]]:
    """Run the prune job, on the bundled corpus if nothing else is said, on Ray; returns what it said."""
    return lambda output, **changes: run_prune_job(output, tiny_llava, scenes_tars, changes)


@pytest.fixture(scope="session")
def prune(
    without_ray: Callable[..., AbstractContextManager[None]], tiny_llava: str, scenes_tars: str
) -> Callable[..., list[str]]:
    """Run the prune job as `prune_on_ray`, but in this process, as if on a cluster with so many GPUs."""

    def run(output: Path, gpus: int = 0, **changes: object) -> list[str]:
        with without_ray(gpus=gpus):
            return run_prune_job(output, tiny_llava, scenes_tars, changes)

    return run


def run_prune_job(output: Path, model: str, corpus: str, changes: dict[str, object]) -> list[str]:
    """Run the prune job; returns what it said."""
    from pipeline.prune.job import PruneSettings, prune_corpus  # here, because most tests need no job

    said: list[str] = []
    settings = {"corpus": (corpus,), "model": model, "shard_size": 64, **changes}
    prune_corpus(PruneSettings(output=str(output), **settings), said.append)  # type: ignore[arg-type]
    return said


@pytest.fixture(scope="session")
def pruned_all(prune: Callable[..., list[str]], made_once: MadeOnce) -> Path:
    """The bundled corpus with every token kept, features in both forms."""
    return made_once("pruned-all", lambda output: prune(output, max_tokens="all", features="both"))


@pytest.fixture(scope="session")
def pruned_64(prune: Callable[..., list[str]], made_once: MadeOnce) -> Path:
    """The bundled corpus at 64 tokens."""
    return made_once("pruned-64", lambda output: prune(output, max_tokens="64"))


@pytest.fixture
def jpeg() -> Callable[[int], bytes]:
    """Bytes of a small JPEG that depends on the seed alone."""

    def make(seed: int) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG")
        return stream.getvalue()

    return make


@pytest.fixture
def write_tar() -> Callable[[Path, list[tuple[str, bytes | dict]]], Path]:
    """Write a tar from (member name, bytes or a JSON object) pairs."""

    def write(path: Path, members: list[tuple[str, bytes | dict]]) -> Path:
        with tarfile.open(path, "w") as archive:
            for name, content in members:
                data = json.dumps(content).encode() if isinstance(content, dict) else content
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return write
