"""Settings check themselves, name the option in what they say, and know which of them decide the bytes."""

import pytest
from pydantic import ValidationError

from pipeline.answer.settings import AnswerSettings
from pipeline.choosing.settings import ChooseSettings
from pipeline.errors import UserError
from pipeline.prune.settings import PruneSettings
from pipeline.report.settings import QuerySettings
from pipeline.settings import deciding

PRUNE = {"corpus": ("a.tar",), "model": "m", "output": "/o"}
ANSWER = {"pruned": "/p", "model": "m", "output": "/o"}


def test_what_decides_the_bytes():
    assert deciding(PruneSettings(**PRUNE)) == {
        "max_tokens": "64", "selector": "zoo", "estimator": "closed_form", "features": "webdataset", "seed": 0,
        "feature_dtype": "model", "dtype": "auto", "shard_size": 512, "shard_bytes": 1 << 30,
        "batch_size": 8, "limit": None, "sample": None, "sample_seed": None, "prompt": [],
        "caption_prompt": "describe the image .", "prompt_column": None,
        "reference_column": None, "type_column": None, "id_column": None, "image_column": None,
    }  # fmt: skip
    assert deciding(AnswerSettings(**ANSWER)) == {
        "tokens": "all", "dtype": "auto", "batch_size": 32, "batch_tokens": 32_768, "max_new_tokens": 64,
        "positions": None, "metric": [], "min_tokens": None, "temperature": 0.0, "top_p": 1.0, "seed": 0, "stop": [],
        "system": None, "json_schema": None, "regex": None, "engine": "transformers", "trust_server_template": False,
    }  # fmt: skip
    assert deciding(AnswerSettings(**ANSWER, metric=("caption=object_f1",)))["metric"] == ["caption=object_f1"]


def test_texts_of_a_command_line_become_values():
    texts = {"shard_size": "4", "batch_size": "5", "shard_timeout_sec": "2", "gpus_per_worker": "0.5", "seed": "-1"}
    made = PruneSettings(**PRUNE, **texts)
    assert (made.shard_size, made.batch_size, made.shard_timeout_sec) == (4, 5, 2.0)
    assert (made.gpus_per_worker, made.seed) == (0.5, -1)
    assert PruneSettings(**PRUNE, batch_size="auto").batch_size == "auto"


def test_a_budget_may_be_a_number():
    """As YAML reads it."""
    assert PruneSettings.model_validate({**PRUNE, "max_tokens": 0.25}).max_tokens == "0.25"
    with pytest.raises(UserError, match="--max-tokens 0: expected a count"):
        PruneSettings.model_validate({**PRUNE, "max_tokens": 0})


def test_folders_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert PruneSettings(**{**PRUNE, "output": "out"}).output == str(tmp_path / "out")
    assert QuerySettings(pruned="p", answers=("a", "b")).answers == (str(tmp_path / "a"), str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_sizes": 4}, "^shard_sizes: there is no such setting; did you mean shard_size\\?$"),
        ({"corpus": "a.tar"}, r"^--corpus a\.tar: expected a list$"),
        ({"corpus": ()}, r"^--corpus \(\): expected at least one$"),
        ({"verify": "maybe"}, "^--verify maybe: expected true or false$"),
        ({"model": None}, "^--model None: expected a text$"),
        ({"model": "a\nb", "seed": "a\nb"}, r"^--seed 'a\\nb': expected a whole number$"),
        ({"seed": "9" * 10_000}, r"^--seed 9{200}\.\.\.: expected a whole number$"),
        ({"shard_size": 0, "limit": -3}, "^--limit -3: expected at least 1; --shard-size 0: expected at least 1$"),
        ({"gpus_per_worker": -1}, "^--gpus-per-worker -1: expected 0, a share of 1"),
        ({"shard_timeout_sec": 0}, "^--shard-timeout 0: expected above 0$"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        PruneSettings(**{**PRUNE, **changes})
    assert "\n" not in str(caught.value)


def test_both_bounds_are_named():
    with pytest.raises(UserError, match=r"^--tolerance 200: expected above 0 and at most 100$"):
        ChooseSettings(**PRUNE, tolerance=200)


def test_settings_never_change():
    with pytest.raises(ValidationError, match="frozen"):
        PruneSettings(**PRUNE).seed = 1
