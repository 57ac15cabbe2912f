"""Each engine has a line in the registry, which says without importing it what it can do."""

import ast
from pathlib import Path

import pytest

from pipeline.answer.engines import ENGINES, check_engine
from pipeline.answer.settings import AnswerSettings
from pipeline.errors import UserError
from pipeline.families import FAMILIES
from pipeline.families.checkpoint import open_checkpoint

ANSWER = Path(__file__).resolve().parents[2] / "pipeline" / "answer"
NEEDED = {"pruned": "/p", "model": "m", "output": "/o"}


def settings_of(engine: str, **changes: object) -> AnswerSettings:
    given = {"server": "http://there/v1"} if engine == "openai" else {}
    return AnswerSettings(**NEEDED, engine=engine, **{**given, **changes})  # type: ignore[arg-type]


def test_the_engines_are_those_that_can_be_asked_for():
    assert set(ENGINES) == set(AnswerSettings.model_fields["engine"].annotation.__args__)  # type: ignore[union-attr]
    for kind in ENGINES.values():
        assert set(kind.options) <= set(AnswerSettings.model_fields)
        assert set(kind.families or FAMILIES) <= set(FAMILIES)


@pytest.mark.parametrize("engine", ENGINES)
def test_families_that_an_engine_does_not_run_are_refused_by_name(engine, tiny_llava):
    checkpoint, _ = open_checkpoint(tiny_llava)
    for family in FAMILIES:
        if family in (ENGINES[engine].families or FAMILIES):
            check_engine(settings_of(engine), checkpoint, family, "compact")
        else:
            with pytest.raises(UserError, match=f"--engine {engine}: it runs .*, and the model is of {family}; answer"):
                check_engine(settings_of(engine), checkpoint, family, "compact")
    if engine != "transformers":
        with pytest.raises(UserError, match=f"--positions original: --engine {engine} numbers kept tokens one after"):
            check_engine(settings_of(engine), checkpoint, "llava", "original")


def test_no_engine_is_imported_before_it_is_needed():
    """Nor the client of servers."""
    for path in ANSWER.glob("*.py"):
        if path.stem not in {kind.module.rpartition(".")[2] for kind in ENGINES.values()}:
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ImportFrom):
                    assert not str(node.module).endswith("_engine"), path
                    assert node.module != "pipeline.answer.chat_server", path
