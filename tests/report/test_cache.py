"""Summaries of large outputs: made once, never out of date, and never in the way."""

from pathlib import Path

import pytest

from jobs import query_selections
from pipeline.errors import UserError
from pipeline.report.cache import SummaryCache
from pipeline.report.query import ask, connect
from pipeline.report.recipe import cook, recipe_of
from tests.report.worked_out import Row


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: str) -> None:
    assert query_selections.main(list(arguments)) == 0


def test_summaries_are_made_once_and_beside_nothing_that_is_committed(made, tmp_path):
    said: list[str] = []
    cache = SummaryCache(str(tmp_path / "cache"), said.append, worth=0)
    before = held(made.pruned)
    for _ in range(2):
        assert ask(connect(made.pruned, made.answers[:1], summaries=cache), "select count(*) as n from answers")
    assert [line.split(" in ")[0] for line in said] == [
        f"gathered summaries of {made.pruned}",
        f"gathered summaries of {made.answers[0]}",
    ]
    assert all("it may be deleted" in line for line in said)
    connect(made.pruned, made.answers[:2], summaries=cache)
    assert len(said) == 3, "those that are there are used"
    assert held(made.pruned) == before
    assert len(held(tmp_path / "cache")) == 3


def test_summaries_follow_what_is_committed(small_pruned, tmp_path):
    said: list[str] = []
    cache = SummaryCache(str(tmp_path / "cache"), said.append, worth=0)

    def sensitivities() -> list[Row]:
        return ask(connect(root, summaries=cache), "select count(*) as n, sum(shard)::int as s from images").to_pylist()

    root = small_pruned(tmp_path / "out")
    assert sensitivities() == [{"n": 6, "s": 3}]
    small_pruned(root, shards=3)
    assert sensitivities() == [{"n": 9, "s": 9}]
    assert len(said) == 2
    assert len(held(tmp_path / "cache")) == 1, "the one before is gone"


def test_small_outputs_are_read_as_they_are(made, tmp_path):
    db = connect(made.pruned, made.answers, summaries=SummaryCache(str(tmp_path / "cache"), pytest.fail))
    assert ask(db, "select count(ranking) as n from images").to_pylist() == [{"n": 100}]
    assert not (tmp_path / "cache").exists()


def test_where_no_summaries_can_be_kept_the_files_are_read_and_that_is_said(made, tmp_path):
    said: list[str] = []
    (tmp_path / "file").write_text("in the way")
    cache = SummaryCache(str(tmp_path / "file"), said.append, worth=0)
    db = connect(made.pruned, made.answers, summaries=cache)
    assert ask(db, "select count(ranking) as n from images").to_pylist() == [{"n": 100}]
    (line,) = said
    assert line.startswith(f"summaries of {made.pruned} are not kept, which makes this slower: {tmp_path / 'file'}")


def test_damaged_summaries_are_made_anew(made, tmp_path):
    said: list[str] = []
    cache = SummaryCache(str(tmp_path / "cache"), said.append, worth=0)
    connect(made.pruned, summaries=cache).close()
    (file,) = (tmp_path / "cache").rglob("*.duckdb")
    file.write_bytes(b"x" * 5000)
    assert ask(connect(made.pruned, summaries=cache), "select count(*) as n from images").to_pylist() == [{"n": 100}]
    assert f"{file} can't be read and is made anew" in said[1]
    assert len(said) == 3


def test_damaged_tables_are_told_as_without_summaries(small_pruned, tmp_path):
    said: list[str] = []
    root = small_pruned(tmp_path / "out")
    path = root / "prompts/part-00000001.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    db = connect(root, summaries=SummaryCache(str(tmp_path / "cache"), said.append, worth=0))
    assert "could not be gathered" in said[0]
    with pytest.raises(UserError, match=r"the SQL can't be run: .*part-00000001\.parquet"):
        cook(db, recipe_of("prompts_by_type"))
    assert held(tmp_path / "cache") == {}


def test_the_command_keeps_summaries_of_large_outputs_where_users_want_them(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(SummaryCache.__init__, "__defaults__", (0,))
    run("--pruned", str(made.pruned), "--recipe", "kept_grid")
    run("--pruned", str(made.pruned), "select count(*) from images")  # which could have written to it
    run("--pruned", str(made.pruned), "--recipe", "overview", "--cache", "none")
    assert not (tmp_path / "user").exists()
    run("--pruned", str(made.pruned), "--recipe", "overview", "--cache", str(tmp_path / "named"))
    assert len(held(tmp_path / "named")) == 1
    run("--pruned", str(made.pruned))
    assert [name.split("/")[:2] for name in held(tmp_path / "user")] == [["zoo-prune", "summaries"]]
