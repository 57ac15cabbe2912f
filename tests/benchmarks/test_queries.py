"""The page of recipes holds what they print; the benchmark of queries measures what it says, in its smallest form."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import queries, queries_page
from benchmarks.made_artifact import Form, make_artifact
from benchmarks.queries import LIMITS, measure, over
from pipeline.artifact.artifact import Artifact
from pipeline.report.recipe import recipe_names

pytestmark = pytest.mark.long


def test_the_page_shows_every_recipe_with_its_output():
    text = queries_page.PAGE.read_text()
    assert text == queries_page.page(), "run python benchmarks/queries_page.py"
    for name in recipe_names():
        assert f"\n### {name}\n" in text
        assert f"--recipe {name}" in text


def test_a_page_that_says_something_else_is_told(tmp_path, monkeypatch):
    page = tmp_path / "queries.md"
    page.write_text(queries_page.PAGE.read_text().replace("  overview", "  overlook", 1).replace("3,200", "3,201"))
    monkeypatch.setattr(queries_page, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["queries_page.py", "--check"])
    with pytest.raises(SystemExit, match="does not hold what the recipes say"):
        queries_page.main()
    monkeypatch.setattr("sys.argv", ["queries_page.py"])
    queries_page.main()
    assert "3,201" not in page.read_text()


def test_the_same_seed_makes_the_same_tables(tmp_path):
    form = Form(2, 6, 4, side=4, kept=8, width=4)

    def hashes(root: Path, form: Form) -> list[str]:
        made = make_artifact(root, form, processes=1)
        folders = (made.pruned, *made.answers)
        return [
            entry.sha256 for path in folders for record in Artifact(path).commits() for entry in record.files.values()
        ]

    first = hashes(tmp_path / "1", form)
    assert len(first) == 2 * (5 + 2)
    assert first[0] != first[4], "another shard has another selection"
    assert hashes(tmp_path / "2", form) == first
    assert hashes(tmp_path / "3", replace(form, seed=1))[0] != first[0]


def test_a_small_form_of_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "_alone", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(queries, "make_artifact", lambda root, form: make_artifact(root, form, processes=1))
    names = ("agreement", "cut_ties", "image_sizes", "kept_grid", "overview", "prompts_by_type")
    result = measure(Form(2, 20, 15), tmp_path, names)
    assert (result["form"]["images"], result["form"]["prompts"]) == (40, 600)
    assert [row["recipe"] for row in result["recipes"]] == list(names)
    assert result["cache_bytes"] > 0
    for row in result["recipes"]:
        assert row["rows"] > 0
        assert row["opening_sec"] > 0
        assert row["recipe_sec"] > 0
        assert row["peak_memory_bytes"] > 1e7


def test_counts_that_are_not_those_made_stop_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "_alone", lambda work, form, *rest: work(Form(2, 21, 3), *rest))
    monkeypatch.setattr(queries, "make_artifact", lambda root, form: make_artifact(root, form, processes=1))
    with pytest.raises(AssertionError):
        measure(Form(2, 20, 3), tmp_path, ["overview"])


def test_what_is_over_a_limit_is_named():
    def row(name: str, reads: str, opening: float, took: float, peak: float) -> dict[str, object]:
        return {"recipe": name, "reads": reads, "opening_sec": opening, "recipe_sec": took, "peak_memory_bytes": peak}

    rows = [row("a", "summaries", 1.9, 2.1, 1e9), row("b", "kept tokens", 2.5, 59.0, 2.1e9)]
    assert over({"recipes": rows}) == [
        "a: recipe_sec 2.1 > 2", "b: opening_sec 2.5 > 2", "b: peak_memory_bytes 2.1e+09 > 2e+09"
    ]  # fmt: skip
    assert LIMITS["tokens_sec"] == 60
