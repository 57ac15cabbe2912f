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
    ("pipeline.grading",),
    ("pipeline.answer", "pipeline.index"),
    ("pipeline.datasets", "pipeline.prune"),
    ("pipeline.choosing",),
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


# Modules whose whole purpose is files. An import of one is a file call.
_FILE_MODULES = {"fcntl", "glob", "shutil", "tempfile"}
_FILE_FUNCTIONS = {
    "io": {"open", "FileIO"},
    "os": {
        *("access", "chmod", "fsync", "link", "listdir", "lstat", "makedirs", "mkdir", "mkfifo", "open", "remove"),
        *("removedirs", "rename", "renames", "replace", "rmdir", "scandir", "stat", "symlink", "truncate", "unlink"),
        *("utime", "walk"),
    },
    "path": {"exists", "getmtime", "getsize", "isdir", "isfile", "islink", "lexists", "samefile"},
}
_PATH_METHODS = {
    *("exists", "glob", "hardlink_to", "is_dir", "is_file", "is_symlink", "iterdir", "lstat", "mkdir", "read_bytes"),
    *("read_text", "rename", "rglob", "rmdir", "symlink_to", "touch", "unlink", "write_bytes", "write_text"),
}
# Of a path as of other things; of these they open no file by its name.
_SHARED_METHODS = {"open", "stat"}
_NO_PATHS = {"Image", "store", "_store", "new"}
# Files that are neither of a corpus nor of an artifact.
_OF_ITS_OWN = {
    "pipeline/cluster/session.py": ["tempfile"],  # what native code says on standard error while Ray starts
    "pipeline/report/query.py": ["tempfile"],  # where DuckDB spills
}


def _called_on(function: ast.Attribute) -> str:
    """The last name before the method: `store` of `artifact.store.open`."""
    owner = function.value
    return owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""


def file_calls(text: str) -> list[str]:
    """The calls of a module that open, write, rename, list, lock or look for a file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in _FILE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            banned = _FILE_FUNCTIONS.get((node.module or "").rpartition(".")[2], set())
            found += [alias.name for alias in node.names if alias.name in banned or node.module in _FILE_MODULES]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.append("open")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = _called_on(node.func), node.func.attr
            on_file_object = owner == "tarfile" and any(keyword.arg == "fileobj" for keyword in node.keywords)
            if (
                name in _FILE_FUNCTIONS.get(owner, ())
                or name in _PATH_METHODS
                or (name in _SHARED_METHODS and owner not in _NO_PATHS and not on_file_object)
            ):
                found.append(f"{owner}.{name}")
    return found


def test_file_calls_are_seen() -> None:
    for call in (
        *("open(p)", "p.open()", "Path(p).read_text()", "(a / b).stat()", "p.stat()", "self.path.mkdir(parents=True)"),
        *("os.replace(a, b)", "os.path.exists(p)", "path.isfile(p)", "import shutil", "from tempfile import mkdtemp"),
        *("from os import replace", "from os.path import exists", "tarfile.open(p)", "io.FileIO(p)", "import glob"),
    ):
        assert len(file_calls(call)) == 1, call
    for call in (
        *(
            "store.open(key)",
            "self._store.stat(key)",
            "artifact.store.stat(key)",
            "Image.open(stream)",
            "replace(a, b)",
        ),
        *(
            "tarfile.open(fileobj=stream)",
            "read_bytes(p)",
            "text.replace(a, b)",
            "os.path.join(a, b)",
            "from os import getpid",
        ),
    ):
        assert file_calls(call) == [], call


def _may_open_files(path: Path) -> bool:
    """Storage does; families read the folder of a model; jobs read and print what the user names."""
    return "jobs" in path.parts or path.parent.name in ("storage", "families")


@pytest.mark.parametrize("path", [p for p in FILES if not _may_open_files(p)], ids=name_of)
def test_only_storage_touches_files(path: Path) -> None:
    assert file_calls(path.read_text()) == _OF_ITS_OWN.get(name_of(path), [])
