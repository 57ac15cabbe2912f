"""The example of a server: its command line, and the asking side against a stand-in for the server."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from pipeline.answer.served import served_name
from pipeline.artifact.artifact import Artifact
from tests.chat_server import ChatServerStandIn, TinyModel

SERVE = Path(__file__).resolve().parents[2] / "examples" / "serve"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SERVE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def few(prune, tmp_path_factory) -> Path:
    output: Path = tmp_path_factory.mktemp("serve") / "few"
    prune(output, limit=3, max_tokens="16")
    return output


@pytest.fixture(scope="module")
def server(few, tiny_llava) -> Iterator[ChatServerStandIn]:
    name = served_name(Artifact(few).require_job("prune", "--pruned"))
    stand_in = ChatServerStandIn(TinyModel(tiny_llava), name).start()
    yield stand_in
    stand_in.kill()


def image_ids(few: Path) -> list[str]:
    table = pq.read_table(few / "selections" / "part-00000000.parquet", columns=["image_id"])
    return table["image_id"].to_pylist()


def test_the_command_that_starts_the_server(few, tiny_llava, capsys, monkeypatch):
    """It is shown, and then becomes the process; the key goes along where nobody sees it."""
    name = served_name(Artifact(few).require_job("prune", "--pruned"))
    command = [
        *("env/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", tiny_llava),
        *("--served-model-name", name, "--dtype", "auto", "--host", "127.0.0.1", "--port", "8123"),
        *("--hf-overrides", '{"architectures": ["ZooPruneLlavaForConditionalGeneration"]}', "--enable-mm-embeds"),
        *("--limit-mm-per-prompt", '{"image": 0, "video": 0}', "--block-size", "32", "--enable-prefix-caching"),
        *("--generation-config", "vllm", "--max-num-batched-tokens", "32768"),
    ]
    asked = ["--pruned", str(few), "--model", tiny_llava, "--python", "env/bin/python", "--port", "8123"]
    start = script("start_server")
    assert start.command_of(asked) == (command, False)
    assert start.command_of([*asked, "--chat-template", "a.jinja"])[0] == [*command, "--chat-template", "a.jinja"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    became: list[object] = []
    monkeypatch.setattr("os.execvpe", lambda *what: became.append(what))
    assert start.main([*asked, "--show"]) == 0
    assert became == []
    assert start.main(asked) == 0
    ((program, words, environment),) = became  # type: ignore[misc]
    assert (program, words, environment["VLLM_API_KEY"]) == ("env/bin/python", command, "sk-secret")
    assert "sk-secret" not in capsys.readouterr().out


def test_a_server_is_started_for_the_model_of_the_artifact_alone(few, tiny_llava, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for file in Path(tiny_llava).iterdir():
        if file.name != "config.json":
            (other / file.name).symlink_to(file)
    config = json.loads((Path(tiny_llava) / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "image_seq_length": 3}))
    assert script("start_server").main(["--pruned", str(few), "--model", str(other), "--show"]) == 2
    assert "is not the model that pruned" in capsys.readouterr().err


def test_names_tell_models_apart(few):
    job = Artifact(few).require_job("prune", "--pruned")
    name = served_name(job)
    assert served_name(job) == name
    job.model["projector"] = "another"
    assert served_name(job) != name


@pytest.mark.parametrize(("tokens", "told"), [("4", "(4 of 256 tokens)"), ("all", "(16 of 256 tokens)")])
def test_an_image_is_asked_about_by_its_id(few, server, tiny_llava, capsys, tokens, told):
    ask = script("ask")
    image_id = image_ids(few)[1]
    asked = ["--pruned", str(few), "--model", tiny_llava, "--server", server.url, "--tokens", tokens]
    assert ask.main([*asked, "--image", image_id[:12], "how many stars are there ?"]) == 0
    out = capsys.readouterr().out
    assert told in out
    assert out.split()[0].isalpha()
    (embeds, text) = server.manners.seen[-1]["messages"][0]["content"]
    assert (embeds["type"], text["text"]) == ("image", "how many stars are there ?")


def test_what_can_not_be_asked_is_said(few, server, tiny_llava, capsys):
    ask = script("ask")
    asked = ["--pruned", str(few), "--model", tiny_llava, "--server", server.url]
    assert ask.main([*asked, "--image", "zz", "what ?"]) == 2
    assert ask.main([*asked, "--image", "", "what ?"]) == 2
    assert ask.main([*asked, "--image", image_ids(few)[0], "<image> or <image> ?"]) == 1
    assert ask.main([*asked, "--server", "nonsense", "--image", image_ids(few)[0], "what ?"]) == 2
    assert ask.main([*asked, "--max-new-tokens", "0", "--image", image_ids(few)[0], "what ?"]) == 2
    assert ask.main([*asked, "--image", image_ids(few)[0], " "]) == 2
    first, second, third, *others = capsys.readouterr().err.splitlines()
    assert others[0] == "error: --server nonsense: expected http://HOST:PORT/v1, or https"
    assert others[1:] == ["error: expected a prompt that is not blank, and --max-new-tokens of 1 or more"] * 2
    assert "--image zz: 0 images of" in first
    assert "--image : 3 images of" in second
    assert "the prompt has 2 <image> placeholders" in third
