"""Shared by the whole suite: the bundled model and corpus, one Ray session, one pruned artifact a form."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from jobs.console import quiet_libraries
from pipeline.prune.job import PruneSettings, prune_corpus
from tests.small_artifacts import as_version_1, small_answers, small_pruned  # noqa: F401  # fixtures for every folder

REPO = Path(__file__).resolve().parent.parent
quiet_libraries()


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
def ray_session() -> Iterator[None]:
    """One private Ray for all tests that need it; stopped only because it was started here."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def prune(ray_session: None, tiny_llava: str, scenes_tars: str) -> Callable[..., list[str]]:
    """Run the prune job on the bundled corpus; returns what it said."""

    def run(output: Path, **changes: object) -> list[str]:
        said: list[str] = []
        settings = {"corpus": (scenes_tars,), "model": tiny_llava, "shard_size": 64, **changes}
        prune_corpus(PruneSettings(output=str(output), **settings), said.append)  # type: ignore[arg-type]
        return said

    return run


@pytest.fixture(scope="session")
def pruned_all(prune: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled corpus with every token kept, features in both forms."""
    output = tmp_path_factory.mktemp("pruned") / "all"
    prune(output, max_tokens="all", features="both")
    return output


@pytest.fixture(scope="session")
def pruned_64(prune: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled corpus at 64 tokens."""
    output = tmp_path_factory.mktemp("pruned") / "64"
    prune(output, max_tokens="64")
    return output


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
