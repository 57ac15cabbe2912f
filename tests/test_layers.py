"""Imports flow jobs -> pipeline -> zoo_ops | schemas and never back; nothing but jobs reads the environment."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
ROOMS = ("jobs", "pipeline", "zoo_ops", "schemas")
ALLOWED = {
    "jobs": {"jobs", "pipeline", "zoo_ops", "schemas"},
    "pipeline": {"pipeline", "zoo_ops", "schemas"},
    "zoo_ops": {"zoo_ops"},
    "schemas": {"schemas"},
}
FILES = [path for room in ROOMS for path in sorted((REPO / room).rglob("*.py"))]


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_imports_never_run_back(path: Path) -> None:
    room = path.relative_to(REPO).parts[0]
    assert imported(ast.parse(path.read_text())) & set(ROOMS) <= ALLOWED[room]


def test_zoo_ops_knows_neither_ray_nor_files_nor_models() -> None:
    foreign = {"ray", "pyarrow", "duckdb", "webdataset", "transformers", "safetensors", "PIL"}
    for path in (REPO / "zoo_ops").rglob("*.py"):
        assert not imported(ast.parse(path.read_text())) & foreign, path


@pytest.mark.parametrize("path", [p for p in FILES if "jobs" not in p.parts], ids=lambda p: str(p.relative_to(REPO)))
def test_only_jobs_read_the_environment(path: Path) -> None:
    text = path.read_text()
    assert "os.getenv" not in text
    assert "os.environ.get" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_nothing_is_pickled(path: Path) -> None:
    assert not imported(ast.parse(path.read_text())) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
