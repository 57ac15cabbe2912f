"""An environment for vLLM is looked at before any work, and what it lacks is one sentence."""

import json
import platform
import sys
from importlib import metadata

import pytest

from pipeline.answer.job import answer_corpus
from pipeline.answer.settings import AnswerSettings
from pipeline.answer.vllm_environment import vllm_environment
from pipeline.errors import UserError

WHOLE = {
    "vllm": "0.32.0",
    "plugin": "0.2.0",
    "code": True,
    "ray": metadata.version("ray"),
    "python": platform.python_version(),
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
}


@pytest.fixture
def interpreter(tmp_path):
    """A program that says of itself what it is told to."""

    def make(said: str, status: int = 0) -> str:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\necho 'it broke' >&2\nexit {status}\n")
        file.chmod(0o755)
        return str(file)

    return make


def test_versions_are_for_the_record(interpreter):
    names = ("vllm", "torch", "transformers", "python")
    assert vllm_environment(interpreter(json.dumps(WHOLE))) == {name: WHOLE[name] for name in names}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vllm": None}, "has no vLLM"),
        ({"vllm": "0.19.1"}, "has vLLM 0.19.1, needed is 0.32 or newer"),
        ({"plugin": None}, "lacks zoo-prune-vllm, the model classes of integrations/vllm"),
        ({"code": False}, "lacks zoo-prune itself"),
        ({"ray": "1.0"}, "has ray 1.0, and workers need"),
        ({"ray": None}, "has ray nowhere, and workers need"),
        ({"python": "3.9.1"}, "has python 3.9.1, and workers need"),
    ],
)
def test_what_an_environment_lacks_is_one_sentence(interpreter, change, said):
    python = interpreter(json.dumps({**WHOLE, **change}))
    with pytest.raises(UserError) as refused:
        vllm_environment(python)
    (sentence,) = str(refused.value).splitlines()
    assert sentence.startswith(f"--engine-python {python}: this environment {said}")
    assert sentence.endswith("`make vllm-env` builds one that has all of it")


@pytest.mark.parametrize(("status", "said"), [(3, "it broke"), (0, "Expecting value")])
def test_an_interpreter_that_says_nothing_useful_is_refused(interpreter, status, said):
    with pytest.raises(UserError, match=rf"it can't be used \({said}.*\); name another interpreter"):
        vllm_environment(interpreter("nonsense", status))
    with pytest.raises(UserError, match="No such file"):
        vllm_environment("/nowhere/python")


def test_this_environment_is_looked_at_where_none_is_named():
    """The suite's has no vLLM. That it is found is the same question to another interpreter."""
    with pytest.raises(UserError, match=r"^--engine vllm \(without --engine-python\): this environment has no vLLM"):
        vllm_environment(None)
    with pytest.raises(UserError, match=rf"^--engine-python {sys.executable}: this environment has no vLLM"):
        vllm_environment(sys.executable)


def test_a_job_looks_before_it_writes_anything(few, tiny_llava, tmp_path, interpreter):
    python = interpreter(json.dumps({**WHOLE, "plugin": None}))
    output = tmp_path / "answers"
    settings = AnswerSettings(
        pruned=str(few), model=tiny_llava, output=str(output), engine="vllm", engine_python=python
    )
    with pytest.raises(UserError, match="lacks zoo-prune-vllm"):
        answer_corpus(settings, lambda line: None)
    assert not output.exists()
