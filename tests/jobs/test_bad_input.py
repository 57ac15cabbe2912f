"""Every mistake a user makes at the command line: one clear sentence, exit status 2, no traceback, nothing written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import answer_corpus, prune_corpus, query_selections
from jobs.console import run
from pipeline.answer.settings import AnswerSettings
from pipeline.errors import UserError
from pipeline.prune.settings import PruneSettings

pytestmark = pytest.mark.long

REPO = Path(__file__).resolve().parents[2]
SCENES = "examples/scenes/scenes-000000.tar"
MODEL = "examples/tiny-llava"


@pytest.fixture(autouse=True)
def in_repo(monkeypatch):
    monkeypatch.chdir(REPO)


def prune_arguments(tmp_path: Path, **changes: str) -> list[str]:
    options = {"corpus": SCENES, "model": MODEL, "output": str(tmp_path / "out"), **changes}
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "nowhere.tar"}, r"--corpus: nowhere\.tar does not exist"),
        ({"corpus": "nowhere-*.tar"}, "nothing matches"),
        ({"corpus": "a-{0..2.tar"}, "unbalanced braces|does not exist"),
        ({"corpus": "docs/decisions"}, "is a folder without images, Parquet or a saved data set"),
        ({"corpus": "README.md"}, "--corpus: README.md is none of WebDataset tars"),
        ({"corpus": "gs://b/{000..009}.tar"}, r"--corpus gs://b/\{000..009\}.tar is a URL"),
        ({"corpus": "s3:/b/a.tar"}, "is a URL"),
        ({"corpus": "file:///a.tar"}, "is a URL"),
        ({"corpus": "pipe:cat a.tar"}, "is a URL"),
        ({"output": "gs://b/out"}, r"--output gs://b/out is a URL; .* copy the folder afterwards"),
        ({"output": "s3:/b/out"}, "--output s3:/b/out is a URL"),
        ({"model": "hf://org/name"}, r"--model hf://org/name is a URL; .*hub id \(org/name\)"),
        ({"model": "https://huggingface.co/org/name"}, "--model https://.* is a URL"),
        ({"model": "nowhere"}, "--model nowhere: no such folder"),
        ({"model": "n" * 300}, "--model n+: no such folder"),
        ({"output": "o" * 300}, "/o+ can't be read: File name too long; .*name another folder"),
        ({"corpus": "c" * 300 + ".tar"}, "can't be read at byte 0: File name too long"),
        ({"model": "examples/scenes"}, "--model examples/scenes: config.json can't be used"),
        ({"max_tokens": "0"}, "--max-tokens 0: expected a count"),
        ({"max_tokens": "1.5"}, "--max-tokens 1.5: expected a count"),
        ({"shard_size": "0"}, "--shard-size 0: expected at least 1"),
        ({"batch_size": "-1"}, "--batch-size -1: expected at least 1"),
        ({"limit": "0"}, "--limit 0: expected at least 1"),
        ({"limit": "ten"}, "--limit ten: expected a whole number, at least 1$"),
        ({"batch_size": "all"}, "--batch-size all: expected a whole number, at least 1, or auto$"),
        ({"selector": "zo"}, "--selector zo: expected one of zoo, zoo_centered, divprune, .*uniform_grid$"),
        ({"shard_timeout": "nan"}, "--shard-timeout nan: expected above 0$"),
        ({"retries": "-1"}, "--retries -1: expected at least 0$"),
        ({"max_error_rate": "1.5"}, r"--max-error-rate 1\.5: expected between 0 and 1$"),
        ({"gpus_per_worker": "-1"}, "--gpus-per-worker -1: expected 0, a share of 1, or a whole number$"),
        ({"gpus_per_worker": "1.5"}, r"--gpus-per-worker 1\.5: expected 0, a share of 1, or a whole number$"),
        ({"gpus_per_worker": "nan"}, "--gpus-per-worker nan: expected 0, a share of 1"),
        ({"output": "README.md"}, "/README.md is a file where a folder must be; name another folder"),
        ({"output": "README.md/out"}, "/README.md is a file where a folder must be; name another folder"),
        ({"output": "/proc/x"}, "/proc/x can't be written: .*; name a folder that can be made"),
        ({"corpus": ""}, "--corpus '': expected a text that is not empty"),
        ({"output": ""}, "--output '': expected a text that is not empty$"),
        ({"limit": "0", "retries": "-1"}, "--limit 0: expected at least 1.*--retries -1|--retries -1.*; --limit 0: "),
        ({"max_tok": "4"}, "No such option '--max-tok'"),
    ],
)  # fmt: skip
def test_prune(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        prune_corpus.main(prune_arguments(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_architecture(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(UserError, match=r"model type 'bert' is not supported; supported are .*llava"):
        prune_corpus.main(prune_arguments(tmp_path, model=str(tmp_path / "bert")))


def test_a_model_without_weights_or_with_a_cut_file(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"not a complete safetensors file"):
        prune_corpus.main(prune_arguments(tmp_path, model=str(model)))
    weights.unlink()
    with pytest.raises(UserError, match=r"no .safetensors file"):
        prune_corpus.main(prune_arguments(tmp_path, model=str(model)))


def test_answer_and_query(tmp_path):
    with pytest.raises(UserError, match=r"--pruned .*does not exist; name the --output of a prune job"):
        answer_corpus.main(["--pruned", str(tmp_path / "no"), "--model", MODEL, "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"--tokens none: expected a count"):
        answer_corpus.main(["--pruned", str(tmp_path), "--model", MODEL, "--output", "x", "--tokens", "none"])
    with pytest.raises(UserError, match=r"--pruned .*is empty, or does not exist"):
        query_selections.main(["--pruned", str(tmp_path)])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no _job.json"):
        query_selections.main(["--pruned", str(tmp_path)])


def test_urls_in_answer_and_query(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"pruned": "p", "model": "org/name", "output": "o"}
    for option, value in (("pruned", "az://b/p"), ("output", "gs://b/o"), ("output", "gs:/b/o")):
        arguments = [part for name, text in {**given, option: value}.items() for part in (f"--{name}", text)]
        with pytest.raises(UserError, match=f"--{option} {value} is a URL"):
            answer_corpus.main(arguments)
    with pytest.raises(UserError, match="--pruned az://b/p is a URL"):
        query_selections.main(["--pruned", "az://b/p"])
    with pytest.raises(UserError, match="--answers az://b/a is a URL"):
        query_selections.main(["--pruned", "p", "--answers", "az://b/a"])
    for settings, what in ((PruneSettings, {"corpus": ("a.tar",)}), (AnswerSettings, {"pruned": "p"})):
        with pytest.raises(UserError, match="--output az://b/o is a URL"):
            settings(**what, model="m", output="az://b/o")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_output_of_a_submitted_job(monkeypatch):
    given = ["--corpus", "nowhere.tar", "--model", MODEL, "--output"]
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"--output out is relative.*give an absolute path"):
        prune_corpus.main([*given, "out"])
    for accepted in ("/data/out", "~/out"):
        with pytest.raises(UserError, match=r"--corpus: nowhere\.tar does not exist"):
            prune_corpus.main([*given, accepted])


@pytest.mark.parametrize("job", [prune_corpus, answer_corpus, query_selections])
def test_exit_status_and_no_traceback(job, tmp_path, monkeypatch, capfd):
    """Of a program; of those that import the model's code before they refuse, of what the program calls."""
    arguments = ["--pruned", str(tmp_path)] if job is not prune_corpus else ["--corpus", "nowhere.tar"]
    if job is query_selections:
        command = [sys.executable, "-m", job.__name__, *arguments]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
        status, said = done.returncode, done.stderr
    else:
        arguments += ["--model", MODEL, "--output", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", [job.__name__, *arguments])
        with pytest.raises(SystemExit) as left:
            run(job.COMMAND)
        status, said = left.value.code, capfd.readouterr().err
    assert status == 2
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_a_model_that_wants_its_own_code_run_is_refused_without_a_question(tmp_path):
    model = Path(shutil.copytree(REPO / MODEL, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config.update(model_type="of_its_own", auto_map={"AutoConfig": "code.Config"})
    (model / "config.json").write_text(json.dumps(config))
    arguments = prune_arguments(tmp_path, model=str(model))
    done = subprocess.run(
        [sys.executable, "-m", "jobs.prune_corpus", *arguments], cwd=REPO, capture_output=True, text=True, input="y\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --model {model}: its config.json (auto_map) asks for code")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_built_is_refused_before_any_work(tmp_path):
    model = Path(shutil.copytree(REPO / MODEL, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["pad_token_id"] = 1 << 20
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"pad_token_id in its config\.json is 1048576, which is no token"):
        prune_corpus.main(prune_arguments(tmp_path, model=str(model)))
    assert not (tmp_path / "out").exists()


def test_what_was_left_out_or_not_quoted(tmp_path):
    with pytest.raises(UserError, match=r"^--corpus, --model, --output must be given$"):
        prune_corpus.main([])
    with pytest.raises(UserError, match=r"unexpected argument 'b\.tar'; put a pattern or statement in quotes"):
        prune_corpus.main(["--corpus", "a.tar", "b.tar", "c.tar", "--model", MODEL, "--output", str(tmp_path)])
    with pytest.raises(UserError, match="'--tokens' requires an argument"):
        answer_corpus.main(["--tokens"])
    with pytest.raises(UserError, match=r"--format csv: .*give SQL or a --recipe to get data"):
        query_selections.main(["--pruned", str(tmp_path), "--format", "csv"])
