"""`--config` and `--save-config`: the settings of a job in a file, checked as options are."""

import os
from pathlib import Path

import pytest
import yaml

from jobs import answer_corpus, prune_corpus
from jobs.config import read_config
from jobs.options import JobCommand, _resolve
from pipeline.answer.settings import AnswerSettings
from pipeline.errors import UserError
from pipeline.prune.settings import PruneSettings
from pipeline.settings import Settings, key, options

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPO / "examples" / "configs").glob("*.yaml"))
COMMANDS: dict[str, JobCommand] = {"prune": prune_corpus.COMMAND, "answer": answer_corpus.COMMAND}
NEEDED = {"prune": "corpus: [x.tar]\nmodel: m\noutput: /o\n", "answer": "pruned: /p\nmodel: m\noutput: /o\n"}


@pytest.fixture
def resolved(monkeypatch):
    """The settings that a command would work with."""

    def run(job: str, *arguments: str) -> Settings:
        seen: list[Settings] = []
        monkeypatch.setattr(COMMANDS[job], "_work", lambda made: seen.append(made) or 0)
        assert {"prune": prune_corpus, "answer": answer_corpus}[job].main(list(arguments)) == 0
        return seen[0]

    return run


def refused(tmp_path: Path, text: str, job: str = "prune", *arguments: str) -> str:
    """What is said of a file; one sentence that names it."""
    (tmp_path / "job.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    main = {"prune": prune_corpus, "answer": answer_corpus}[job].main
    with pytest.raises(UserError) as caught:
        main(["--config", str(tmp_path / "job.yaml"), *arguments])
    said = str(caught.value)
    assert "\n" not in said
    assert said.count(f"{tmp_path}/job.yaml") == 1
    return said.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("job", ["prune", "answer"])
def test_a_file_and_the_same_options_make_the_same_settings(job, resolved, tmp_path):
    """Every option, in the type that YAML gives and with a value that is not the default."""
    other = {
        "prune": {
            "corpus": ["a.tar", "b.jsonl"], "model": "m", "output": "o", "max_tokens": 0.25, "selector": "divprune",
            "estimator": "directional", "seed": -3, "limit": 7, "sample": 3, "sample_seed": 2,
            "features": "both", "feature_dtype": "int8",
            "shard_size": 3, "shard_bytes": 5, "batch_size": "auto",
            "max_error_rate": 0.125, "dtype": "bfloat16", "workers": 2, "gpus_per_worker": 0.5, "device": "cuda",
            "retries": 0, "shard_timeout": 1.5, "prompt": ["what ?", "where ?"], "caption_prompt": "describe it",
            "prompt_column": "q", "reference_column": "a", "type_column": "t", "id_column": "i", "image_column": "x",
            "image_root": "pictures",
        },
        "answer": {
            "pruned": "p", "model": "m", "output": "o", "tokens": "mean:9", "min_tokens": 4, "max_new_tokens": 2,
            "metric": ["exact", "caption=object_f1"], "positions": "original", "batch_size": 3, "batch_tokens": 4,
            "dtype": "float16", "workers": 2, "gpus_per_worker": 2, "device": "cpu", "retries": 1,
            "shard_timeout": 60, "temperature": 0.5, "top_p": 0.75, "seed": 4, "stop": [".", "no"],
            "system": "be short", "json_schema": "form.json", "regex": "[a-z]+", "engine": "openai",
            "engine_python": "env/bin/python", "server": "http://there:8000/v1", "served_model": "x", "concurrency": 3,
            "request_timeout": 2.5, "trust_server_template": True,
            "prompts": "questions.jsonl", "where": "num_kept = 4", "prompt_column": "q",
            "reference_column": "a", "type_column": "t", "id_column": "i",
        },
    }[job]  # fmt: skip
    keys = {key(name, option): option for name, _, option in options(COMMANDS[job].settings)}
    assert set(other) == {name for name, option in keys.items() if not option.once}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(other))
    arguments = []
    for name, value in other.items():
        flag = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            arguments += [flag] if one is True else [flag, str(one)]
    by_options = resolved(job, *arguments)
    assert resolved(job, "--config", str(path)) == by_options
    saved = tmp_path / "saved.yaml"
    assert resolved(job, *arguments, "--save-config", str(saved)) == by_options
    assert resolved(job, "--config", str(saved)) == by_options
    assert set(yaml.safe_load(saved.read_text())) == set(other)


def test_options_count_before_the_file_and_the_file_before_defaults(resolved, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(NEEDED["prune"] + "shard_size: 3\nseed: 5\n")
    made = resolved("prune", "--config", str(path), "--shard-size", "512", "--corpus", "other.tar")
    assert isinstance(made, PruneSettings)
    assert (made.shard_size, made.seed, made.corpus, made.batch_size) == (512, 5, ("other.tar",), 8)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("shardsize: 3", "shardsize: there is no such setting; did you mean shard_size?"),
        ("shard-size: 3", "shard-size: there is no such setting; did you mean shard_size?"),
        ("--max-tokens: 3", "--max-tokens: there is no such setting; did you mean max_tokens?"),
        ("shard_timeout_sec: 3", "shard_timeout_sec: there is no such setting; did you mean shard_timeout?"),
        ("ray_address: auto", "ray_address: there is no such setting; "),
        ("1: 2", "1: there is no such setting; there are dtype, workers, "),
        ("shard_size: few", "shard_size few: expected a whole number, at least 1"),
        ("shard_size: 0", "shard_size 0: expected at least 1"),
        ("shard_size: null", "shard_size None: expected a whole number, at least 1"),
        ("shard_size: [1, 2]", "shard_size [1, 2]: expected a whole number, at least 1"),
        ("shard_timeout: soon", "shard_timeout soon: expected a number, above 0"),
        ("selector: zooo", "selector zooo: expected one of zoo, zoo_centered"),
        ("seed: yes", "seed is true, as YAML reads yes"),
        ("device: off", "device is false, as YAML reads yes"),
        ("verify: perhaps", "verify perhaps: expected true or false"),
        ("max_tokens: 1.5", "max_tokens 1.5: expected a count of 1 to 10,000,000 (64), a ratio"),
        ("gpus_per_worker: 1.5", "gpus_per_worker 1.5: expected 0, a share of 1, or a whole number"),
        ("features: none\nfeature_dtype: int8", None),
    ],
)
def test_a_setting_that_does_not_fit_is_named_in_one_sentence(line, said, tmp_path):
    if said is None:
        (tmp_path / "job.yaml").write_text(NEEDED["prune"] + line)
        with pytest.raises(UserError, match="--features none stores no features"):
            prune_corpus.main(["--config", str(tmp_path / "job.yaml")])
    else:
        assert said in refused(tmp_path, NEEDED["prune"] + line)


def test_what_repeats_is_a_list_and_a_url_no_path(tmp_path):
    assert "corpus x.tar: expected a list" in refused(tmp_path, "corpus: x.tar\nmodel: m\noutput: /o")
    assert "corpus True: expected a text" in refused(tmp_path, "corpus: [yes]\nmodel: m\noutput: /o")
    said = refused(tmp_path, "corpus: [x.tar]\nmodel: m\noutput: gs://bucket/o")
    assert said.startswith("--config job.yaml: output gs://bucket/o is a URL")
    said = refused(tmp_path, NEEDED["answer"] + "metric: [best]", "answer")
    assert said.startswith("--config job.yaml: metric ")


def test_a_wrong_option_beside_a_file_is_named_as_an_option(tmp_path):
    (tmp_path / "job.yaml").write_text(NEEDED["prune"])
    with pytest.raises(UserError, match=r"^--shard-size few: expected"):
        prune_corpus.main(["--config", str(tmp_path / "job.yaml"), "--shard-size", "few"])
    (tmp_path / "job.yaml").write_text("corpus: [x.tar]\nmodel: m\n")
    with pytest.raises(UserError, match=r"^--output must be given$"):
        prune_corpus.main(["--config", str(tmp_path / "job.yaml")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there are no settings in it"),
        ("# nothing\n", "there are no settings in it"),
        ("- corpus\n", "line 1: there are no settings in it"),
        ("seed: 1\nmodel: m\nseed: 2\n", "line 3: seed stands there twice, first in line 1"),
        ('seed: 1\n"seed": 1\n', "line 2: seed stands there twice, first in line 1"),
        ("seed: 1\n---\nseed: 2\n", "line 2: but found another document"),
        ("seed: {a: 1}\n", "line 1: seed holds more than values or a list of them"),
        ("corpus: [[a]]\n", "line 1: corpus holds more than values or a list of them"),
        ("<<: {seed: 1}\n", "line 1: << holds more than values or a list of them"),
        ("? [a]\n: 1\n", "line 1: a key that is no name"),
        ("seed: !!python/object/apply:os.getcwd []\n", "line 1: "),
        ("seed: *other\n", "line 1: found undefined alias"),
        ("seed: [1\n", "expected ',' or ']'"),
        ("seed: 2024-06-31\n", "is no YAML text"),
        ("[" * 1500, "is nested too deeply"),
        (b"seed: \xff\xfe\n", "is no YAML text"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_sentence(text, said, tmp_path):
    assert said in refused(tmp_path, text)


def test_a_file_that_cannot_be_read_or_written_is_refused(tmp_path, resolved):
    with pytest.raises(UserError, match=r"--config .*/none.yaml can't be read: No such file or directory"):
        prune_corpus.main(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        prune_corpus.main(["--config", str(tmp_path)])
    with pytest.raises(UserError, match=r"--config s3://bucket/job.yaml is a URL"):
        prune_corpus.main(["--config", "s3://bucket/job.yaml"])
    arguments = ["--corpus", "x.tar", "--model", "m", "--output", "/o", "--save-config"]
    with pytest.raises(UserError, match=r"--save-config .*can't be written: No such file or directory"):
        prune_corpus.main([*arguments, str(tmp_path / "none" / "job.yaml")])
    mine = tmp_path / "job.yaml"
    mine.write_text("# my own words\n")
    with pytest.raises(UserError, match="exists and holds something else; name a new file"):
        prune_corpus.main([*arguments, str(mine)])
    assert mine.read_text() == "# my own words\n"
    for _ in range(2):  # the second finds the very same settings there
        resolved("prune", *arguments, str(tmp_path / "new.yaml"))


def test_settings_that_do_not_fit_are_not_saved(tmp_path):
    arguments = ["--corpus", "x.tar", "--model", "m", "--output", "/o", "--save-config", str(tmp_path / "job.yaml")]
    with pytest.raises(UserError):
        prune_corpus.main([*arguments, "--shard-size", "0"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_settings_and_name_files_that_are_there(path):
    command = COMMANDS[path.name.partition("-")[0]]
    made = _resolve(command.settings, {}, str(path))
    assert f"zoo-prune {command.name} --config examples/configs/{path.name}" in path.read_text()
    if made.model.startswith("examples/"):
        assert (REPO / made.model).is_dir()


@pytest.mark.usefixtures("work_here")
def test_the_examples_over_the_bundled_corpus_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(REPO / "examples")
    monkeypatch.chdir(tmp_path)
    ran = []
    for name in ("prune-scenes", "prune-rankings", "answer-scenes"):
        few = ["--limit", "12"] if name.startswith("prune") else []
        main = prune_corpus.main if few else answer_corpus.main
        assert main(["--config", f"examples/configs/{name}.yaml", *few]) == 0, capsys.readouterr().err
        ran.append(name)
    assert {path.stem for path in EXAMPLES} == {*ran, "prune-llava-1.5"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers", "scenes", "scenes-rankings"]
    assert "accuracy, %" in capsys.readouterr().out


def test_the_fields_of_a_file_are_those_of_the_settings(tmp_path):
    (tmp_path / "job.yaml").write_text("shard_timeout: 5\n")
    assert read_config(str(tmp_path / "job.yaml"), PruneSettings) == {"shard_timeout_sec": 5}
    assert read_config(str(tmp_path / "job.yaml"), AnswerSettings) == {"shard_timeout_sec": 5}
