"""README tells the truth: its figures are those of the committed results, its Python runs, its commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from jobs import prune_corpus
from jobs.options import execute
from jobs.zoo_prune import COMMAND
from pipeline.report.query import ask, connect

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()


def test_figures_are_those_of_the_committed_results():
    command = [sys.executable, "benchmarks/readme_figures.py", "--check"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_operations_example_runs():
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "from zoo_ops" in c)
    projector = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 40)).requires_grad_(False)
    names = {"projector": projector, "features_BND": torch.randn(2, 100, 32)}
    exec(compile(code, "README.md", "exec"), names)
    assert tuple(names["kept"].features_BKO.shape) == (2, 32, 40)


def test_the_reading_example_runs_on_a_real_artifact(pruned_64, monkeypatch, tmp_path):
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "webdataset" in c)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photos").symlink_to(pruned_64)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["features"].shape[0] == len(names["ranking"]) == 64


@pytest.mark.parametrize("target", re.findall(r"make ([a-z-]+)", README))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (REPO / "Makefile").read_text(), re.M)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`?((?:docs|benchmarks|examples|jobs|pipeline)/[\w./-]+)", README)))
)
def test_named_files_exist(path):
    assert (REPO / path.rstrip("./")).exists(), path


Block = tuple[bool, list[list[str]]]  # whether it is an illustration, the words of its commands
CORPORA = REPO / "docs" / "corpora.md"  # its commands run in tests/corpus/test_docs.py
TEXTS = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md")), *sorted((REPO / "examples").rglob("*.md"))]


def console_blocks(text: str) -> list[Block]:
    """The blocks of commands in a text: those that run as they stand, and those that say they are illustrations."""
    blocks = []
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        lines = block.replace("\\\n", " ").splitlines()
        commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.startswith("$ ")]
        blocks.append((block.startswith("# illustration: "), commands))
    return blocks


def ours(words: list[str]) -> list[str]:
    """The arguments of `zoo-prune` in a command, also of one that is submitted; none in another command."""
    if "zoo-prune" in words[:1]:
        return words[1:]
    return ["prune", *words[words.index("jobs/prune_corpus.py") + 1 :]] if "jobs/prune_corpus.py" in words else []


def test_commands_on_bundled_data_run_as_written_in_a_fresh_clone(work_here, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(REPO / "examples")
    monkeypatch.chdir(tmp_path)
    ran = 0
    texts = [path for path in TEXTS if path != CORPORA]
    for is_illustration, commands in (block for path in texts for block in console_blocks(path.read_text())):
        for arguments in () if is_illustration else filter(None, map(ours, commands)):
            assert execute(COMMAND, arguments) == 0, capsys.readouterr().err
            ran += 1
    assert ran >= 4
    assert "accuracy, %" in capsys.readouterr().out


def test_illustrations_are_understood_by_the_commands():
    seen = 0
    for is_illustration, commands in (block for path in TEXTS for block in console_blocks(path.read_text())):
        for arguments in filter(None, map(ours, commands)) if is_illustration else ():
            job = COMMAND.commands[arguments[0]]
            context = job.make_context(arguments[0], arguments[1:])
            assert context.args == [], "arguments that nothing takes"
            given = {
                name: value for name, value in context.params.items() if value and name in job.settings.model_fields
            }
            job.settings(**given)
            seen += 1
    assert seen >= 3


def test_a_submitted_job_is_shown_with_the_token_that_ray_asks_for():
    submits = [
        (path.name, block)
        for path in TEXTS
        for block in re.findall(r"```console\n(.*?)```", path.read_text(), re.S)
        if "ray job submit" in block
    ]
    assert {name for name, _ in submits} == {"README.md", "operations.md", "stores.md"}
    assert all("RAY_AUTH_MODE=token" in block for _, block in submits)
    assert "RAY_AUTH_MODE=token ray job submit" in prune_corpus.EXAMPLES


def test_sql_in_the_texts_runs(pruned_64):
    statements = [
        line
        for path in TEXTS
        for block in re.findall(r"```sql\n(.*?)```", path.read_text(), re.S)
        for line in block.splitlines()
    ]
    assert statements
    db = connect(pruned_64)
    for sql in statements:
        assert len(ask(db, sql))
