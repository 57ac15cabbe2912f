"""Jobs whose corpus, model, output and answers lie in an object store: the same bytes as on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import job_status, query_selections
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.report.query import ask, connect
from pipeline.storage.local import LocalStore
from pipeline.storage.places import folder_at

REPO = Path(__file__).resolve().parents[2]
DATA = ("selections/", "prompts/", "errors/", "features/", "answers/")
SETTINGS = {"max_tokens": "16", "features": "both", "shard_size": 12, "limit": 40}
ASKED = {"tokens": "8", "max_new_tokens": 4}


def send(folder: Path, address: str) -> None:
    """Copy a folder into a store."""
    store = folder_at(address)
    for entry in LocalStore(folder).walk():
        store.put(entry.key, (folder / entry.key).read_bytes())


def data_in(address: str) -> dict[str, bytes]:
    """The data files of an artifact, by their keys."""
    store = folder_at(address)
    keys = [entry.key for entry in store.walk() if entry.key.startswith(DATA)]
    return dict(zip(keys, store.read_all(keys), strict=True))


def answer(pruned: str, output: str, model: str) -> list[str]:
    said: list[str] = []
    answer_corpus(AnswerSettings(pruned=pruned, output=output, model=model, **ASKED), said.append)
    return said


@pytest.fixture(scope="module")
def on_disk(prune: Callable[..., list[str]], without_ray, tiny_llava: str, made_once) -> Path:
    """The bundled corpus pruned and answered on disk."""

    def make(folder: Path) -> None:
        prune(folder / "pruned", **SETTINGS)
        with without_ray():
            answer(str(folder / "pruned"), str(folder / "answers"), tiny_llava)

    return made_once("pruned-16-and-answers", make)


@pytest.fixture
def in_store(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llava: str) -> dict[str, str]:
    """Corpus and model in a bucket; on this machine nothing but an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    send(REPO / "examples" / "scenes", f"{s3}/corpora/scenes")
    send(Path(tiny_llava), f"{s3}/models/tiny")
    return {
        "corpus": f"{s3}/corpora/scenes/scenes-{{000000..000002}}.tar",
        "model": f"{s3}/models/tiny",
        "output": f"{s3}/out/pruned",
        "answers": f"{s3}/out/answers",
    }


def test_everything_in_a_bucket_gives_the_bytes_that_it_gives_on_disk(on_disk, in_store, prune, work_here, capsys):
    settings = {"corpus": (in_store["corpus"],), "model": in_store["model"], **SETTINGS}
    prune(in_store["output"], **settings)
    answer(in_store["output"], in_store["answers"], in_store["model"])
    for address, name in ((in_store["output"], "pruned"), (in_store["answers"], "answers")):
        expected, found = data_in(str(on_disk / name)), data_in(address)
        assert found.keys() == expected.keys()
        assert [key for key in expected if found[key] != expected[key] and not key.startswith("answers/")] == []
        assert len(expected) > 2
    tables = []
    for pruned, answers in ((on_disk / "pruned", on_disk / "answers"), (in_store["output"], in_store["answers"])):
        db = connect(pruned, [answers])
        tables.append(
            [
                ask(db, "select * from answers join images using (image_id) order by prompt_id").drop_columns(
                    "seconds"
                ),
                ask(db, "select * from tokens order by all limit 500"),
            ]
        )
    assert tables[0] == tables[1]
    said = prune(in_store["output"], **settings)
    assert [line for line in said if "nothing to do" in line]
    assert job_status.main(["--output", in_store["output"], "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["output"]) == ("finished", in_store["output"])
    assert query_selections.main(["--pruned", in_store["output"], "--answers", in_store["answers"]]) == 0
    assert "accuracy" in capsys.readouterr().out
