"""Each recipe's result against what is worked out from the committed files; what recipes can be told."""

import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pytest

from jobs import query_selections
from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.report.cache import SummaryCache
from pipeline.report.query import connect
from pipeline.report.recipe import KINDS, READS, SUMMARIES, cook, parse_recipe, recipe_names, recipe_of
from tests.report.worked_out import AGAIN, FORM, Data, Row, kept_grid

SETS = {  # what is set in the tests, for tables as small as these
    "storage": {"budgets": "3,6,12,24"},
    "slowest_shards": {"limit": "3"},
    "errors_by_source": {"limit": "3"},
    "duplicates": {"limit": "3"},
    "flattest_images": {"limit": "7"},
    "kept_grid": {"k": "5"},
    "kept_by_tile": {"k": "5"},
    "first_picks": {"limit": "6"},
    "cut_ties": {"k": "6", "within": "0.1"},
    "gain_curve": {"picks": "1,4,12,13"},
    "gain_held": {"budgets": "1,6,12"},
    "sensitivity_grid": {"share": "0.5", "seed": "3"},
    "sensitivity_by_pick": {"share": "0.4", "step": "5"},
    "sensitive_dropped": {"share": "0.6", "k": "4"},
    "accuracy_by_source": {"budget": "6", "limit": "2"},
    "accuracy_by_spread": {"budget": "0.1250"},
    "losses": {"limit": "9"},
    "agreement": {"more": "6"},
    "flips": {"more": "most", "fewer": "6", "limit": "4"},
    "common_mistakes": {"limit": "8"},
}


@pytest.fixture(scope="module")
def data(made) -> Data:
    def rows(root: Path, table: str) -> list[Row]:
        return ds.dataset(root / table, format="parquet").to_table().to_pylist()

    answers = {budget: rows(path, "answers") for budget, path in zip(FORM.budgets, made.answers, strict=True)}
    tables = [rows(made.pruned, table) for table in ("selections", "prompts", "errors")]
    return Data(*tables, answers, list(Artifact(made.pruned).commits()))


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What the cache said."""
    return []


@pytest.fixture(scope="module")
def connections(made, lines, tmp_path_factory):
    cache = SummaryCache(str(tmp_path_factory.mktemp("cache")), lines.append, worth=0)
    return {
        "committed files": connect(made.pruned, made.answers),
        "cache": connect(made.pruned, made.answers, summaries=cache),
    }


def assert_same(rows: list[Row], expected: list[Row]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert list(row) == list(other)
        for name, value in other.items():
            if isinstance(value, float | np.floating):
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
            else:
                assert row[name] == value, name


def given(name: str) -> list[str]:
    return [f"{key}={value}" for key, value in SETS.get(name, {}).items()]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_the_files_say(name, data, connections):
    recipe = recipe_of(name)
    expected = AGAIN[name](data, **SETS.get(name, {}))
    assert expected, "an empty table tells nothing"
    assert_same(cook(connections["committed files"], recipe, given(name)).to_pylist(), expected)
    if recipe.reads == SUMMARIES:
        assert_same(cook(connections["cache"], recipe, given(name)).to_pylist(), expected)
    else:
        with pytest.raises(UserError):  # what it reads is in no summary
            cook(connections["cache"], recipe, given(name))


def test_recipes_are_at_least_twenty_and_each_is_a_statement_of_its_parameters(connections):
    names = recipe_names()
    assert len(names) >= 20
    for name in names:
        recipe = recipe_of(name)
        (statement,) = duckdb.extract_statements(recipe.sql)
        assert statement.named_parameters == {parameter.name for parameter in recipe.parameters}, name
        assert recipe.reads in READS
        assert all(parameter.kind in KINDS for parameter in recipe.parameters)
        assert max(map(len, recipe.sql.splitlines())) <= 120, name


@pytest.mark.parametrize("name", [name for name in recipe_names() if recipe_of(name).needs is not None])
def test_a_recipe_that_needs_answers_says_so(name, made):
    recipe = recipe_of(name)
    with pytest.raises(UserError, match=f"the recipe {name} needs {recipe.needs}, but there are none; name"):
        cook(connect(made.pruned), recipe)
    one = connect(made.pruned, made.answers[:1])
    if "two" in recipe.needs:
        with pytest.raises(UserError, match="there are answers at all alone; name the output of each of two"):
            cook(one, recipe)
    else:
        assert len(cook(one, recipe))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("losses", ["limt=3"], "--set limt: there is no such key of the recipe losses; did you mean limit?"),
        ("overview", ["k=3"], "--set k: there is no such key of the recipe overview; it has none"),
        ("losses", ["zzz=3"], "--set zzz: there is no such key of the recipe losses; there are more, fewer, limit"),
        ("losses", ["limit"], "--set limit: expected key=value"),
        ("losses", ["limit=3", "limit=4"], "--set limit=4: limit is given twice"),
        ("losses", ["limit=0"], "--set limit=0: expected a whole number of at least 1"),
        ("losses", ["limit=1e3"], "--set limit=1e3: expected a whole number of at least 1"),
        ("losses", ["limit=5; select 1"], "--set limit=5; select 1: expected a whole number of at least 1"),
        ("storage", ["budgets=1,,2"], "--set budgets=1,,2: expected whole numbers of at least 1, with commas"),
        ("sensitivity_grid", ["share=nan"], "--set share=nan: expected a number above 0 and up to 1"),
        ("sensitivity_grid", ["share=1.5"], "--set share=1.5: expected a number above 0 and up to 1"),
        ("sensitivity_grid", ["seed=-1"], "--set seed=-1: expected a whole number of at least 0"),
        ("losses", ["fewer=64"], "--set fewer=64: there are no answers at that budget; there are all, 6, 0.125"),
        ("losses", ["fewer=' or 1"], "--set fewer ' or 1: expected a count of 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(name, settings, message, connections):
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
        cook(connections["cache"], recipe_of(name), settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in recipe_names() if "two" in (recipe_of(name).needs or "")])
def test_answers_are_not_held_against_themselves(name, connections):
    with pytest.raises(UserError, match=r"^--set: more and fewer are both the answers at 6; set one of them"):
        cook(connections["cache"], recipe_of(name), ["more=6", "fewer=6"])


def test_a_number_that_is_named_twice_counts_once(connections):
    for name, key in (("gain_curve", "picks"), ("gain_held", "budgets"), ("storage", "budgets")):
        once, twice = (
            cook(connections["committed files"], recipe_of(name), [f"{key}={numbers}"]).to_pylist()
            for numbers in ("1,4", "4,1,1,4")
        )
        assert once == twice, name


def answered(*rows: tuple[str, str, str | None, float | None]) -> duckdb.DuckDBPyConnection:
    """The answers alone, as budget, prompt, answer and score; a prompt is about the image of its first letter."""
    db = duckdb.connect()
    db.execute(
        "create table answers (budget text, prompt_id text, image_id text, type text, metric text, tokens int, "
        "answer text, score float, correct bool, shard int)"
    )
    for budget, prompt, answer, score in rows:
        of = [budget, prompt, prompt[0], prompt[1:], 8 if budget == "all" else 4, answer, score, score == 1]
        db.execute("insert into answers values (?, ?, ?, ?, 'exact', ?, ?, ?, ?, 0)", of)
    db.execute("create table images as select distinct image_id, image_id || '.jpg' as source from answers")
    return db


def test_what_one_budget_refused_is_not_compared():
    """The prompt that does not fit with all tokens is right with fewer: no image gains by it, and none agrees."""
    db = answered(
        ("all", "ax", "yes", 1.0), ("all", "az", None, None), ("all", "bx", "yes", 1.0), ("all", "by", "no", 0.0),
        ("all", "bz", None, None),
        ("4", "ax", "no", 0.0), ("4", "az", "yes", 1.0), ("4", "bx", "yes", 1.0), ("4", "by", "yes", 1.0),
        ("4", "bz", None, None),
    )  # fmt: skip
    lost = cook(db, recipe_of("losses")).to_pylist()
    assert [(row["image_id"], row["prompts"], row["loss"]) for row in lost] == [("a", 1, 100.0), ("b", 2, -50.0)]
    agreed = cook(db, recipe_of("agreement")).to_pylist()
    assert [(row["type"], row["prompts"], row["same_percent"]) for row in agreed] == [("x", 2, 50.0), ("y", 1, 0.0)]


@pytest.mark.parametrize("name", ["accuracy", "accuracy_by_type"])
def test_one_image_has_no_interval(name):
    (row,) = cook(answered(("all", "ax", "yes", 1.0)), recipe_of(name)).to_pylist()
    assert (row["accuracy"], row["low"], row["high"]) == (100.0, None, None)


def test_an_unknown_recipe_is_told_with_the_nearest(made):
    with pytest.raises(UserError, match=r"^--recipe kept-gird: there is no such recipe; did you mean kept_grid\?$"):
        recipe_of("kept-gird")
    with pytest.raises(UserError, match=r"^--recipe '7\\n': there is no such recipe; --list shows all$"):
        recipe_of("7\n")
    with pytest.raises(UserError, match="there is no such recipe"):
        recipe_of("../recipes/overview")


def test_a_head_that_says_nothing_is_noticed():
    head = "-- What there is.\n-- reads: summaries\n-- $limit count = 3: rows\n"
    assert parse_recipe("x", f"{head}select $limit").parameters[0].default == "3"
    for wrong in (
        "select 1",
        head.replace("summaries", "everything"),
        head.replace("count", "date"),
        head.replace(": rows", ""),
        "-- What.\n-- reads: summaries\n-- needs: luck\n",
    ):
        with pytest.raises(AssertionError, match=r"^x: "):
            parse_recipe("x", wrong)


def run(capsys, *arguments: str) -> str:
    assert query_selections.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_command_lists_shows_and_runs_recipes(made, data, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = [json.loads(line) for line in run(capsys, "--list", "--format", "json").splitlines()]
    assert [row["recipe"] for row in listed] == recipe_names()
    assert next(row for row in listed if row["recipe"] == "losses") == {
        "recipe": "losses", "shows": "The images whose answers lose most between two budgets.",
        "set": "more=most fewer=fewest limit=20", "reads": "summaries", "needs": "answers at two budgets",
    }  # fmt: skip
    table = run(capsys, "--list").splitlines()
    assert len(table) == 2 + len(listed)
    assert run(capsys, "--list", "--recipe", "losses") == recipe_of("losses").sql
    of_made = ["--pruned", str(made.pruned), "--recipe", "kept_grid", "--set", "k=5", "--format", "json"]
    rows = [json.loads(line) for line in run(capsys, *of_made, "--memory", "0.5").splitlines()]
    assert_same(rows, kept_grid(data, "5"))
    assert not (tmp_path / "zoo-prune").exists(), "it is small"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--pruned must be given"),
        (["--pruned", "p", "--recipe", "overview", "select 1"], "--recipe overview comes with SQL of its own"),
        (["--list", "select 1"], "--list comes with SQL of its own"),
        (["--pruned", "p", "--set", "k=3"], "--set k=3: there is nothing to set without running a --recipe"),
        (["--list", "--recipe", "losses", "--set", "k=3"], "--set k=3: there is nothing to set"),
        (["--pruned", "p", "--format", "csv"], "--format csv: the summary is for people"),
        (["--pruned", "p", "--memory", "0", "select 1"], "--memory 0: expected above 0"),
        (["--pruned", "p", "--cache", "s3://b/k", "select 1"], "--cache s3://b/k: summaries are kept on a local disk"),
        (["--pruned", "p", "--recipe", "losess"], "did you mean losses?"),
        (["--pruned", "p", "--recipe", "losses", "--set", "limit=x"], "--set limit=x: expected a whole number"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_one_sentence(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        query_selections.main(arguments)
    assert "\n" not in str(caught.value)
