"""Jobs whose corpus, model, output and answers lie in an object store: the same bytes as on disk."""

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs import job_status, query_selections, report_corpus
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.prune.forecast import Forecast, forecast
from pipeline.prune.job import prune_corpus
from pipeline.prune.settings import PruneSettings
from pipeline.report.cache import SummaryCache
from pipeline.report.query import ask, connect
from pipeline.report.recipe import cook, recipe_of
from pipeline.storage.lease import Body
from pipeline.storage.local import LocalStore
from pipeline.storage.places import at, folder_at
from schemas.records import CommitRecord
from tests.object_server import FAULTS, Faults

REPO = Path(__file__).resolve().parents[2]
DATA = ("selections/", "prompts/", "errors/", "features/", "answers/")
SETTINGS = {"max_tokens": "16", "features": "both", "shard_size": 8, "limit": 24}
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


@pytest.mark.parametrize(
    "share", [0.05, pytest.param(0.0, marks=pytest.mark.slow), pytest.param(0.2, marks=pytest.mark.slow)]
)
def test_everything_in_a_bucket_gives_the_bytes_that_it_gives_on_disk(
    share, on_disk, in_store, prune, work_here, capsys, object_server
):
    """While the server answers a share of all requests with errors, or breaks off."""
    object_server.faults = faults = Faults(share, seed=1)
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
    report = f"{in_store['output']}-report.html"
    asked = ["--pruned", in_store["output"], "--answers", in_store["answers"], "--images", "4", "--output", report]
    assert report_corpus.main(asked) == 0
    store, key = at(report)
    assert store.read(key).count(b'src="data:image/jpeg') == 4, "pictures are read from the corpus in the bucket"
    assert faults.made.keys() == (set(FAULTS) if share else set())


def test_a_plan_of_a_bucket_is_that_of_a_disk_and_writes_nothing(
    in_store, prune, object_server, scenes_tars, tiny_llava, tmp_path
):
    def planned(corpus: str, model: str, output: str) -> Forecast:
        return forecast(
            PruneSettings(corpus=(corpus,), model=model, output=output, plan=True, plan_sample=0, **SETTINGS)
        )

    there = (in_store["corpus"], in_store["model"], in_store["output"])
    before = {entry.key: entry.tag for entry in folder_at(in_store["output"].removesuffix("/out/pruned")).walk()}
    object_server.requests.clear()
    found = planned(*there)
    assert object_server.requests.keys() <= {"GET", "HEAD", "LIST"}
    assert {
        entry.key: entry.tag for entry in folder_at(in_store["output"].removesuffix("/out/pruned")).walk()
    } == before
    here = planned(scenes_tars, tiny_llava, str(tmp_path / "out"))
    assert (found.census.total, found.shards) == (here.census.total, here.shards)
    assert found.parts["features"] == here.parts["features"]

    prune(in_store["output"], corpus=(in_store["corpus"],), model=in_store["model"], **SETTINGS)
    written = sum(entry.size_bytes for entry in folder_at(in_store["output"]).walk())
    assert found.size_bytes == pytest.approx(written, rel=0.05)
    assert planned(*there).shards_there == found.shards


SMALL = {"max_tokens": "4", "shard_size": 2, "limit": 4}


@pytest.fixture(scope="module")
def small_on_disk(prune: Callable[..., list[str]], made_once) -> dict[str, bytes]:
    return data_in(str(made_once("pruned-4-of-4", lambda folder: prune(folder, **SMALL))))


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_of_two_drivers_at_once_one_does_the_job_and_the_other_is_told(
    rounds, s3, small_on_disk, work_here, tiny_llava, scenes_tars, monkeypatch
):
    """Two whole jobs begin at once; the one that owns the output commits once the other was refused."""
    monkeypatch.setattr("pipeline.storage.lease.LEASE_SEC", 1.2)
    own = Artifact.commit
    for number in range(rounds):
        output, begin, refused = f"{s3}/{number}", threading.Barrier(2), threading.Event()
        told: list[str] = []
        done: list[int] = []
        committing: set[int] = set()

        def commit(artifact: Artifact, record: CommitRecord, refused=refused, committing=committing) -> None:
            committing.add(threading.get_ident())
            assert refused.wait(60)
            own(artifact, record)

        def drive(output=output, begin=begin, refused=refused, told=told, done=done) -> None:
            begin.wait()
            try:
                prune_corpus(PruneSettings(corpus=(scenes_tars,), model=tiny_llava, output=output, **SMALL), print)
                done.append(threading.get_ident())
            except UserError as error:
                told.append(str(error))
                refused.set()

        monkeypatch.setattr(Artifact, "commit", commit)
        drivers = [threading.Thread(target=drive) for _ in range(2)]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        assert committing == set(done)
        assert len(done) == 1
        (sentence,) = told
        assert re.fullmatch(
            f"--output {output} is in use by process .*; wait for it, or choose another --output", sentence
        )
        assert data_in(output) == small_on_disk
        assert folder_at(output).stat("_SUCCESS") is not None
        assert folder_at(output).holder("_lock") == ""


def test_a_driver_that_lost_its_lease_commits_nothing(s3, prune, monkeypatch):
    """Another one takes over while the second of three shards is at work: no record and no manifest is written."""
    output = f"{s3}/out"
    own = Artifact.commit

    def commit(artifact: Artifact, record: CommitRecord) -> None:
        if record.shard == 1:
            folder_at(output).put("_lock", Body("the other", "another nonce", 60.0).to_json())
        own(artifact, record)

    monkeypatch.setattr(Artifact, "commit", commit)
    with pytest.raises(
        UserError, match=f"{output} is not held by this job any more: another process has taken it over"
    ):
        prune(output, shard_size=8, limit=24)
    names = [entry.key for entry in folder_at(output).walk()]
    assert [name for name in names if name.startswith(("_commits/", "_failures/"))] == ["_commits/00000000.json"]
    assert not {"manifest.json", "_SUCCESS"} & set(names)
    assert folder_at(output).holder("_lock") == "the other"


def test_resuming_lists_the_bucket_once_and_reads_each_record_once(s3, small_pruned, object_server):
    small_pruned(f"{s3}/out", shards=12)
    object_server.requests.clear()
    resume = Artifact(f"{s3}/out").resume(13)
    assert (resume.pending, resume.num_images) == ([12], 36)
    assert object_server.requests == {"LIST": 1, "GET": 12}


@pytest.mark.slow
def test_a_listing_of_many_pages_is_one_listing(s3, object_server):
    store = folder_at(f"{s3}/out")
    keys = [f"a/{number:04d}" for number in range(2100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"1"), keys))
    object_server.requests.clear()
    object_server.faults = Faults(0.3, seed=2)
    assert [entry.key for entry in store.walk()] == keys
    assert object_server.requests["LIST"] - object_server.faults.made.total() == 3
    object_server.faults = Faults()
    store.clear("a/")
    assert list(store.walk()) == []


def test_recipes_run_over_a_bucket_and_only_read_it(s3, small_pruned, small_answers, object_server, tmp_path):
    pruned = small_pruned(f"{s3}/out")
    answers = [small_answers(f"{s3}/{tokens}", pruned, tokens=tokens) for tokens in ("all", "1")]
    before = {entry.key: entry.tag for entry in folder_at(f"{s3}/out").walk()}
    cache = SummaryCache(str(tmp_path / "cache"), lambda _: None, worth=0)
    object_server.requests.clear()
    for db in (connect(pruned, answers), connect(pruned, answers, summaries=cache)):
        assert cook(db, recipe_of("overview"))["images"].to_pylist() == [6]
        assert cook(db, recipe_of("agreement"))["both_right"].to_pylist() == [2]
    assert cook(connect(pruned), recipe_of("kept_grid"), ["k=1"])["images"].to_pylist() == [6]
    assert object_server.requests.keys() <= {"GET", "HEAD", "LIST"}
    assert {entry.key: entry.tag for entry in folder_at(f"{s3}/out").walk()} == before
    assert len(list((tmp_path / "cache").rglob("*.duckdb"))) == 3


def test_a_query_over_a_bucket_only_reads(s3, small_pruned, object_server, tmp_path):
    db = connect(small_pruned(f"{s3}/out"))
    before = {entry.key: entry.tag for entry in folder_at(f"{s3}/out").walk()}
    for sql in (
        f"copy images to '{tmp_path}/x.parquet'",
        f"copy images to '{s3}/out/x.parquet'",
        "insert into images select * from images",
        f"select * from read_parquet('{s3}/out/selections/part-00000000.parquet')",
        "select * from read_text('/etc/hostname')",
        "install httpfs",
    ):
        with pytest.raises(UserError):
            ask(db, sql)
    object_server.requests.clear()
    assert ask(db, "select count(*) as n from images").to_pylist() == [{"n": 6}]
    assert object_server.requests.keys() <= {"GET", "HEAD", "LIST"}
    assert {entry.key: entry.tag for entry in folder_at(f"{s3}/out").walk()} == before
    assert list(tmp_path.iterdir()) == []
