"""The house has floors: a room imports only rooms below its own. Each rule that rooms live by stands here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
FLOORS = (
    ("zoo_ops",),
    ("schemas",),
    ("pipeline.errors",),
    ("pipeline.storage", "pipeline.budget"),
    ("pipeline.settings",),
    ("pipeline.families",),
    ("pipeline.corpus",),
    ("pipeline.artifact",),
    ("pipeline.cluster", "pipeline.loader", "pipeline.report"),
    ("pipeline.answer", "pipeline.index"),
    ("pipeline.prune",),
    ("jobs",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PACKAGES = ("jobs", "pipeline", "zoo_ops", "schemas")
FILES = [path for package in PACKAGES for path in sorted((REPO / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def room_of(module: str) -> str:
    """`pipeline.prune` of `pipeline.prune.encode`, `jobs` of `jobs.console`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipeline" else parts[0]


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            if node.module == "pipeline":
                yield from (f"pipeline.{alias.name}" for alias in node.names)


def packages_of(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports_of(path)}


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(".".join(path.relative_to(REPO).with_suffix("").parts)) for path in FILES}
    assert rooms - {"pipeline.__init__"} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    own = room_of(".".join(path.relative_to(REPO).with_suffix("").parts))
    for module in imports_of(path):
        if module.partition(".")[0] in PACKAGES:
            room = room_of(module)
            assert room == own or FLOOR[room] < FLOOR[own], f"{own} is not above {room}"


def test_zoo_ops_and_schemas_import_nothing_of_each_other() -> None:
    for path in (REPO / "schemas").rglob("*.py"):
        assert "zoo_ops" not in packages_of(path), path


def test_zoo_ops_knows_neither_ray_nor_files_nor_models() -> None:
    foreign = {"ray", "pyarrow", "duckdb", "webdataset", "transformers", "safetensors", "PIL"}
    for path in (REPO / "zoo_ops").rglob("*.py"):
        assert not packages_of(path) & foreign, path


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "cluster"], ids=name_of)
def test_only_the_cluster_room_imports_ray(path: Path) -> None:
    assert "ray" not in packages_of(path)


@pytest.mark.parametrize("path", [p for p in FILES if "jobs" not in p.parts], ids=name_of)
def test_only_jobs_read_the_environment(path: Path) -> None:
    text = path.read_text()
    assert "os.getenv" not in text
    assert "os.environ.get" not in text


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_pickled(path: Path) -> None:
    assert not packages_of(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
