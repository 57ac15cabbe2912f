"""SQL that people keep: questions about an artifact as .sql files, with parameters that are bound, never pasted.

A file of `recipes/` is one reading statement over the views of `pipeline.report.query`. Its head says, in comments:

    -- What it shows, in one line.
    -- reads: summaries                             or: kept tokens, sampled tokens
    -- needs: answers                               or: answers at two budgets; left out where none are needed
    -- $limit count = 20: how many images           a parameter: name, type, default, meaning

The statement takes `$limit` for its value. Those that read summaries get by without the lists of tokens, so that of
large outputs they can read a cache.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.budget import parse_answer_budget
from pipeline.errors import UserError
from pipeline.report.query import ask
from pipeline.storage.local import LocalStore

_FILES = LocalStore(Path(__file__).parent / "recipes")
_SUFFIX = ".sql"
_HEAD = re.compile(
    r"-- (?P<about>\S.*\.)\n-- reads: (?P<reads>.+)\n(?:-- needs: (?P<needs>.+)\n)?(?P<rest>(?:-- \$.*\n)*)"
)
_PARAMETER = re.compile(r"-- \$(?P<name>\w+) (?P<kind>\w+) = (?P<default>.*?): (?P<about>.+)")
SUMMARIES, KEPT, SAMPLED = "summaries", "kept tokens", "sampled tokens"
READS = (SUMMARIES, KEPT, SAMPLED)
NEEDS = {None: 0, "answers": 1, "answers at two budgets": 2}  # runs of answers
_MOST, _FEWEST = "most", "fewest"


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a recipe can be told."""

    name: str
    kind: str
    default: str
    about: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """A question with a name."""

    name: str
    about: str
    reads: str
    needs: str | None
    parameters: tuple[Parameter, ...]
    sql: str  # the whole file

    @property
    def reads_summaries(self) -> bool:
        """Whether it gets by without the lists of tokens."""
        return self.reads == SUMMARIES

    def told(self, settings: Sequence[str]) -> dict[str, str]:
        """The values of the parameters as texts, of which some were told as `key=value`.

        Raises:
            UserError: not of this form, told twice, or of a parameter that the recipe does not have; or a value that is
                not of its kind.
        """
        kinds = {one.name: one.kind for one in self.parameters}
        values: dict[str, str] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise UserError(f"--set {setting}: expected key=value")
            if key not in kinds:
                raise UserError(_no_such("--set", key, f"key of the recipe {self.name}", list(kinds)))
            if key in values:
                raise UserError(f"--set {setting}: {key} is given twice")
            if kinds[key] != BUDGET:
                _value(key, kinds[key], value)
            elif value not in (_MOST, _FEWEST):
                parse_answer_budget(value, f"--set {key}")
            values[key] = value
        return {one.name: one.default for one in self.parameters} | values


def recipe_names() -> list[str]:
    """Every recipe there is, by name."""
    return [entry.key.removesuffix(_SUFFIX) for entry in _FILES.list() if entry.key.endswith(_SUFFIX)]


def recipe_of(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        UserError: there is none; with the nearest name.
    """
    known = recipe_names()
    if name not in known:
        raise UserError(_no_such("--recipe", name, "recipe", known, "--list shows all"))
    return parse_recipe(name, _FILES.read(f"{name}{_SUFFIX}").decode())


def parse_recipe(name: str, sql: str) -> Recipe:
    """The recipe that the text of a file is."""
    head = _HEAD.match(sql)
    assert head is not None, f"{name}: the head of a recipe says what it shows and what it reads"
    found = [_PARAMETER.fullmatch(line) for line in head["rest"].splitlines()]
    parameters = tuple(Parameter(**one.groupdict()) for one in found if one is not None)
    assert len(parameters) == len(found), f"{name}: a parameter is `-- $name kind = default: meaning`"
    assert all(one.kind in KINDS for one in parameters), f"{name}: a parameter is of a kind among {KINDS}"
    assert head["reads"] in READS, f"{name}: it reads one of {READS}"
    assert head["needs"] in NEEDS, f"{name}: it needs one of {list(NEEDS)}"
    return Recipe(name, head["about"], head["reads"], head["needs"], parameters, sql)


def recipes_table() -> pa.Table:
    """A row for each recipe: its name, what it shows, what it can be told, what it reads and needs."""
    rows = [
        {
            "recipe": recipe.name,
            "shows": recipe.about,
            "set": " ".join(f"{one.name}={one.default}" for one in recipe.parameters),
            "reads": recipe.reads,
            "needs": recipe.needs or "",
        }
        for recipe in map(recipe_of, recipe_names())
    ]
    return pa.Table.from_pylist(rows)


def cook(
    db: duckdb.DuckDBPyConnection, recipe: Recipe, settings: Sequence[str] = (), *, as_texts: bool = False
) -> pa.Table:
    """The result of a recipe.

    Args:
        db: a connection of `connect`.
        recipe: to run.
        settings: `key=value`, see `Recipe.told`.
        as_texts: as of `ask`.

    Raises:
        UserError: a parameter that there is not, or a value that does not fit; or the recipe needs answers that there
            are not.
    """
    values = recipe.told(settings)
    budgets = _budgets(db, recipe)
    parameters = {
        one.name: _budget(one.name, values[one.name], budgets)
        if one.kind == BUDGET
        else _value(one.name, one.kind, values[one.name])
        for one in recipe.parameters
    }
    chosen = [parameters[one.name] for one in recipe.parameters if one.kind == BUDGET]
    if NEEDS[recipe.needs] > 1 and len(set(chosen)) < len(chosen):
        names = " and ".join(one.name for one in recipe.parameters if one.kind == BUDGET)
        raise UserError(
            f"--set: {names} are both the answers at {chosen[0]}; set one of them to another of {', '.join(budgets)}"
        )
    return ask(db, recipe.sql, as_texts=as_texts, parameters=parameters)


def _budgets(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> list[str]:
    """The budgets that there are answers at, from the one that shows most of an image; none where none are needed.

    Raises:
        UserError: the recipe needs more of them.
    """
    needed = NEEDS[recipe.needs]
    if not needed:
        return []
    found = ask(db, "select budget, avg(tokens) as tokens from answers group by budget order by tokens desc, budget")
    budgets: list[str] = found["budget"].to_pylist()
    if len(budgets) < needed:
        there = f"there are answers at {', '.join(budgets)} alone" if budgets else "there are none"
        more = "each of two answer jobs" if needed > 1 else "an answer job"
        raise UserError(
            f"the recipe {recipe.name} needs {recipe.needs}, but {there}; name the output of {more} as --answers"
        )
    return budgets


def _value(name: str, kind: str, text: str) -> Any:
    """What is bound for a parameter that is no budget of answers."""
    read, expected = _KINDS[kind]
    value = read(text.strip())
    if value is None:
        raise UserError(f"--set {name}={text}: expected {expected}")
    return value


def _budget(name: str, text: str, budgets: Sequence[str]) -> str:
    """A budget as the view `answers` has it, however it is written."""
    if text in (_MOST, _FEWEST):
        return budgets[0 if text == _MOST else -1]
    asked = parse_answer_budget(text, f"--set {name}")
    for budget in budgets:
        if parse_answer_budget(budget, "--tokens") == asked:
            return budget
    raise UserError(f"--set {name}={text}: there are no answers at that budget; there are {', '.join(budgets)}")


def _whole(text: str, least: int = 0) -> int | None:
    value = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
    return value if value >= least else None


def _count(text: str) -> int | None:
    return _whole(text, least=1)


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 < value <= 1 else None


def _several(text: str, one: Callable[[str], Any]) -> list[Any] | None:
    values = [one(part.strip()) for part in text.split(",")]
    return None if None in values else list(dict.fromkeys(values))  # named twice, they would count twice


_KINDS: Mapping[str, tuple[Callable[[str], Any], str]] = {  # how a value is read, and what it must be
    "count": (_count, "a whole number of at least 1"),
    "counts": (lambda text: _several(text, _count), "whole numbers of at least 1, with commas between them"),
    "seed": (_whole, "a whole number of at least 0"),
    "share": (_share, "a number above 0 and up to 1"),
}
BUDGET = "budget"  # a parameter of this kind is one of the budgets of the answers: most and fewest are those in tokens
KINDS = (*_KINDS, BUDGET)


def _no_such(where: str, name: str, what: str, known: Sequence[str], otherwise: str = "") -> str:
    like = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.4)
    if like:
        hint = f"did you mean {like[0]}?"
    else:
        hint = otherwise or (f"there are {', '.join(known)}" if known else "it has none")
    return f"{where} {name if name.isprintable() else repr(name)}: there is no such {what}; {hint}"
