"""The demo's commands and queries, without the minutes that its jobs take."""

import importlib.util
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.zoo_prune import COMMAND
from pipeline.report.query import ask, connect

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_commands_are_what_it_shows_and_are_understood(demo, monkeypatch, capsys, tmp_path):
    ran, sessions = [], []

    def note(_command, arguments):
        ran.append(arguments)
        return 0

    @contextmanager
    def session(_address):
        sessions.append(len(ran))
        yield

    monkeypatch.setattr(demo, "execute", note)
    monkeypatch.setattr("pipeline.cluster.session.ray_session", session)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path / "a folder")])
    demo.main()
    shown = capsys.readouterr().out.replace("\\\n", " ")
    typed = [shlex.split(line.removeprefix("$ ")) for line in shown.splitlines() if "zoo-prune " in line]
    assert [line[1:] for line in typed[: len(ran)]] == ran
    assert sessions == [0], "one Ray for all commands"
    assert len(typed) == len(ran) + 3
    for _, job, *arguments in typed:
        context = COMMAND.commands[job].make_context(job, arguments)
        assert context.args == [], "arguments that nothing takes"


def test_its_queries_run(demo, pruned_64):
    db = connect(pruned_64)
    assert len(ask(db, demo.FIRST)) == 5
    assert ask(db, demo.WRONG).column_names == ["prompt", "answer", "references"]
