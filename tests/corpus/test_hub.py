"""Data sets of the Hugging Face Hub, with a stand-in for the hub's client: nothing is downloaded."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers.utils.hub  # noqa: F401  # which takes the hub's client as it is imported, not the stand-in

from pipeline.corpus.resolve import resolve_corpus
from pipeline.errors import UserError
from pipeline.storage.input_file import InputReadError, open_input
from pipeline.storage.places import at
from tests.corpus.conftest import scan_all, sha256

COMMITS = ("a" * 40, "b" * 40)


class Hub:
    """A data set `org/cats` with two commits, of which `main` is the first until it is told otherwise."""

    def __init__(self, root: Path) -> None:
        self.root, self.main = root, COMMITS[0]
        self.asked: list[str | None] = []
        self.fetched: list[str] = []
        self.down = False

    def dataset_info(self, name: str, *, revision: str | None, files_metadata: bool) -> SimpleNamespace:
        self.asked.append(revision)
        if name != "org/cats" or self.down:
            raise huggingface_hub.errors.LocalTokenNotFoundError(f"Repository {name} not found\nand more")
        commit = self.main if revision in (None, "main") else str(revision)
        folder = self.root / commit
        siblings = [
            SimpleNamespace(rfilename=str(path.relative_to(folder)), size=path.stat().st_size)
            for path in sorted(folder.rglob("*"), reverse=True)
            if path.is_file()
        ]
        return SimpleNamespace(sha=commit, siblings=siblings)

    def hf_hub_download(self, name: str, key: str, *, revision: str, repo_type: str) -> str:
        assert repo_type == "dataset"
        self.fetched.append(f"{revision[0]}/{key}")
        if self.down:
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        path = self.root / revision / key
        if not path.exists():
            raise huggingface_hub.errors.EntryNotFoundError(key)
        return str(path)


@pytest.fixture
def hub(tmp_path, jpegs, monkeypatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    for number, commit in enumerate(COMMITS):
        folder = hub.root / commit / "data"
        folder.mkdir(parents=True)
        (hub.root / commit / "README.md").write_text("x")
        for part in range(2):
            begin = 2 * part + number
            images = [{"bytes": data, "path": "x.jpg"} for data in jpegs[begin : begin + 2]]
            pq.write_table(pa.table({"image": images, "question": ["a", "b"]}), folder / f"train-{part}.parquet")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    return hub


def test_a_data_set_is_its_parquet_files_at_one_commit(hub, jpegs):
    found = resolve_corpus(["hf://datasets/org/cats"])
    assert [item.path for item in found] == [
        f"hf://datasets/org/cats@{COMMITS[0]}/data/train-{part}.parquet" for part in range(2)
    ]
    rows = scan_all("hf://datasets/org/cats", prompt_column="question")
    assert [row.image_id for row in rows] == [sha256(data) for data in jpegs[:4]]
    assert rows[0].source == f"{found[0].path}@0/x.jpg"
    assert rows[0].path == found[0].path
    rows = scan_all(f"hf://datasets/org/cats@{COMMITS[1]}/data/train-1.parquet")
    assert [row.image_id for row in rows] == [sha256(data) for data in jpegs[3:5]]
    assert len(resolve_corpus(["hf://datasets/org/cats/data/*-0.parquet"])) == 1
    assert len(resolve_corpus(["hf://datasets/org/cats/data"])) == 2


def test_the_revision_is_resolved_once_for_an_output(hub, prune, tmp_path):
    settings = {"corpus": ("hf://datasets/org/cats",), "prompt_column": "question", "max_tokens": "2"}
    prune(tmp_path / "out", **settings)
    hub.main = COMMITS[1]
    said = prune(tmp_path / "out", **settings)
    assert "nothing to do" in said[-1]
    assert hub.asked == [None, COMMITS[0]]
    said = prune(tmp_path / "new", **settings)
    assert {name[0] for name in hub.fetched[-4:]} == {"b"}


def test_the_hub_mixes_with_files(hub, prune, tmp_path, jpegs):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.jpg").write_bytes(jpegs[5])
    corpus = ("hf://datasets/org/cats", str(tmp_path / "p"))
    said = prune(tmp_path / "out", corpus=corpus, prompt=("what ?",), max_tokens="2")
    assert "indexed 5 samples: 5 distinct images in 1 shard, 5 prompts" in said


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("hf://datasets/org/dogs", r"the hub does not give hf://datasets/org/dogs \(Repository org/dogs not found\)"),
        ("hf://datasets/org", "is not of the form hf://datasets/OWNER/NAME"),
        ("hf://datasets/org/cats/../x", "is not of the form"),
        ("hf://datasets/org/cats/nothing", "holds neither Parquet files nor tars"),
        ("hf://org/cats", "hf://org/cats is not of the form hf://datasets/OWNER/NAME"),
    ],
)
def test_what_is_not_there_is_one_sentence(hub, pattern, said):
    with pytest.raises(UserError, match=said):
        resolve_corpus([pattern])


def test_a_file_that_the_hub_does_not_give_is_a_read_error(hub, monkeypatch):
    monkeypatch.setattr("pipeline.storage.input_file.time.sleep", lambda _: None)
    (first, _) = resolve_corpus(["hf://datasets/org/cats"])
    with pytest.raises(InputReadError) as caught:
        open_input(first.path.replace("train-0", "none")).read(1)
    assert caught.value.reason == "missing_file"
    hub.down = True
    with pytest.raises(InputReadError, match="the hub does not give it") as caught:
        open_input(first.path).read(1)
    assert caught.value.reason == "read_error"


def test_a_data_set_of_the_hub_can_only_be_read(hub):
    store, key = at(resolve_corpus(["hf://datasets/org/cats"])[0].path)
    with store.open(key) as stream:
        assert stream.read(4) == b"PAR1"
    assert store.stat(key).size_bytes == len(store.read(key))
    assert store.stat("none") is None
    for refused in (lambda: store.put("x", b""), lambda: store.list(), lambda: store.delete(key), store.scratch):
        with pytest.raises(UserError, match="can only be read file by file"):
            refused()
