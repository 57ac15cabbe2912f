"""The package as users install it: built into an sdist and a wheel, put into an empty environment, run from there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "pipeline", "schemas", "zoo_ops")
# What building needs; made from a copy, because setuptools leaves folders behind where it builds.
SOURCES = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "tests")


def build(kind: str, source: Path, target: Path) -> Path:
    """Build by the project's own backend, as `pip` does without isolation; the file it made."""
    target.mkdir(parents=True, exist_ok=True)
    code = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, copy / name)
    return build("sdist", copy, tmp_path_factory.mktemp("sdist") / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist and nothing else."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    assert not (unpacked / "tests").exists()
    return build("wheel", unpacked, folder / "dist")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that sees third-party packages but not this checkout, with the wheel installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    # A folder named in a .pth is searched, but its own .pth files, by which this checkout is installed, are not read.
    (site / "third_party.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    python = str(folder / "bin" / "python")
    install = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    done = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def call(environment: Path, cwd: Path, *command: str) -> str:
    """Standard output of a command of the environment, called from `cwd`."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS", "VIRTUAL_ENV")}
    program = str(environment / "bin" / command[0])
    done = subprocess.run([program, *command[1:]], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_recipe(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for package in PACKAGES for kind in ("py", "sql") for path in (REPO / package).rglob(f"*.{kind}")]
    page = {str(path.relative_to(REPO)) for path in (REPO / "pipeline/report/page").rglob("*") if path.is_file()}
    assert len(page) == 8, "template, style and script of a report, its libraries and their licences"
    assert held == {str(path.relative_to(REPO)) for path in files} | page
    assert len([name for name in held if name.startswith("pipeline/report/recipes/")]) >= 20


@pytest.mark.ray
def test_the_command_runs_where_only_the_wheel_is(environment, tiny_llava, scenes_tars, tmp_path):
    where = call(
        environment, tmp_path, "python", "-c", "import jobs, pipeline; print(jobs.__file__, pipeline.__file__)"
    )
    assert where.count(str(environment)) == 2
    assert call(environment, tmp_path, "zoo-prune", "--help").startswith("Usage: zoo-prune [OPTIONS] COMMAND")
    assert call(environment, tmp_path, "zoo-prune", "--version").startswith("zoo-prune, version ")
    call(environment, tmp_path, "zoo-prune", "prune", "--corpus", scenes_tars, "--model", tiny_llava, "--limit", "3",
         "--output", "out", "--workers", "1")  # fmt: skip
    asked = ("zoo-prune", "query", "--pruned", "out", "--format", "csv", "select count(*) as images from images")
    assert call(environment, tmp_path, *asked).split() == ['"images"', "3"]
