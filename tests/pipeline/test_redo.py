"""`--redo-errors`: what it takes back, what it mends in the index, and what is left when it is interrupted."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import Index, read_index
from pipeline.cluster.device import Placement
from pipeline.cluster.outcomes import Status
from pipeline.cluster.run_folder import run_folder
from pipeline.corpus.resolve import resolve_corpus
from pipeline.errors import UserError
from pipeline.index import redo
from pipeline.index.build import extend_index
from pipeline.index.redo import forget_transient_errors
from pipeline.prune import stages as shards
from pipeline.prune.stages import Tally, run_shards
from schemas.records import CommitRecord

pytestmark = pytest.mark.usefixtures("work_here")
MISSING = (1, 5, 6)


@pytest.fixture
def corpus(tmp_path: Path, jpeg) -> Path:
    """A manifest of 8 images, three of them missing; 6 will have the bytes of 0."""
    for n in range(8):
        if n not in MISSING:
            (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"image": f"{n}.jpg", "prompts": [f"what {n} ?"]}) + "\n" for n in range(8)))
    return path


def indexed(corpus: Path, artifact: Artifact) -> Index:
    return extend_index(artifact.store, None, resolve_corpus([str(corpus)]), shard_size=2, limit=None)


def commit_all(artifact: Artifact, index: Index) -> None:
    for shard in range(index.num_shards):
        rows = index.read_shard(shard).to_pylist()
        counts = Counter(f"samples.{row['reason'] or 'ok'}" for row in rows)
        artifact.commit(CommitRecord(shard, {}, {"samples": len(rows), **counts}))


def find_the_missing(corpus: Path, jpeg) -> None:
    for n in MISSING:
        (corpus.parent / f"{n}.jpg").write_bytes(jpeg(0 if n == 6 else n))


def assert_mended(index: Index, artifact: Artifact) -> None:
    """Every sample has its hash, every distinct image one owner, and the counts are those of the rows."""
    rows = [row for shard in range(index.num_shards) for row in index.read_shard(shard).to_pylist()]
    assert len(rows) == 8
    for row in rows:
        assert row["reason"] is None
        assert row["image_id"] == hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
    owners = {row["image_id"]: row["shard"] for row in rows if row["slot"] is not None}
    assert len(owners) == sum(row["slot"] is not None for row in rows) == index.num_images == 7
    assert all(row["image_shard"] == owners[row["image_id"]] for row in rows)
    (generation,) = index.generations
    assert generation.failed_samples == {}
    assert read_index(artifact.store) == index


def test_counts_are_right_after_a_redo_that_mends_some_and_then_the_rest(corpus, jpeg, tmp_path):
    artifact = Artifact(tmp_path / "out")
    index = indexed(corpus, artifact)
    commit_all(artifact, index)
    (corpus.parent / "5.jpg").write_bytes(jpeg(5))
    index = forget_transient_errors(artifact, index, lambda _: None)
    assert index.generations[0].failed_samples == {"missing_file": 2}
    assert index.num_images == 6
    find_the_missing(corpus, jpeg)
    assert_mended(forget_transient_errors(artifact, index, lambda _: None), artifact)


@pytest.mark.parametrize("killed_at", ["write_part", "write_index"])
def test_an_interrupted_redo_is_taken_up_by_the_next(killed_at, corpus, jpeg, tmp_path, monkeypatch):
    artifact = Artifact(tmp_path / "out")
    index = indexed(corpus, artifact)
    commit_all(artifact, index)
    find_the_missing(corpus, jpeg)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(redo, killed_at, die)
        with pytest.raises(KeyboardInterrupt):
            forget_transient_errors(artifact, index, lambda _: None)
    index = read_index(artifact.store)
    assert index is not None
    assert_mended(forget_transient_errors(artifact, index, lambda _: None), artifact)


@pytest.mark.parametrize("reason", ["missing_file", "read_error", "changed_file", "out_of_memory"])
def test_failures_of_the_place_and_the_worker_are_redone(reason, corpus, jpeg, tmp_path):
    find_the_missing(corpus, jpeg)
    artifact = Artifact(tmp_path / "out")
    index = indexed(corpus, artifact)
    commit_all(artifact, index)
    artifact.commit(CommitRecord(1, {}, {"samples": 2, f"samples.{reason}": 1, "samples.ok": 1}))
    artifact.commit(CommitRecord(2, {}, {"samples": 2, "samples.unreadable_image": 1, "samples.ok": 1}))
    assert forget_transient_errors(artifact, index, lambda _: None) == index
    assert artifact.committed_shards() == [n for n in range(index.num_shards) if n != 1]


def test_a_path_that_no_file_can_have_ends_no_redo(corpus, jpeg, tmp_path):
    find_the_missing(corpus, jpeg)
    with open(corpus, "a") as stream:
        stream.write('{"image": "a\\u0000b.jpg"}\n')
    artifact = Artifact(tmp_path / "out")
    index = indexed(corpus, artifact)
    commit_all(artifact, index)
    assert forget_transient_errors(artifact, index, lambda _: None) == index
    assert sum(index.generations[0].failed_samples.values()) == 1


class Counted:
    """Counts the calls of a function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: object, name: str) -> None:
        self.calls = 0
        self._real = getattr(where, name)
        monkeypatch.setattr(where, name, self)

    def __call__(self, *arguments: object, **named: object) -> object:
        self.calls += 1
        return self._real(*arguments, **named)


@pytest.mark.parametrize("many", [2, 20])
def test_a_redo_looks_at_the_whole_index_once_however_many_rows_it_mends(many, jpeg, tmp_path, monkeypatch):
    """A look for rows without hash, one for owners, one to count; every part read and written once."""
    names = [f"{n}.jpg" for n in range(many)]
    (tmp_path / "there.jpg").write_bytes(jpeg(0))
    lines = [json.dumps({"image": name}) + "\n" for name in ["there.jpg", *names]]
    (tmp_path / "m.jsonl").write_text("".join(lines))
    artifact = Artifact(tmp_path / "out")
    index = indexed(tmp_path / "m.jsonl", artifact)
    for n, name in enumerate(names):
        (tmp_path / name).write_bytes(jpeg(n // 2))  # all but the first two come twice; those are there already
    looks = Counted(monkeypatch, redo, "dataset_of")
    reads = Counted(monkeypatch, redo.pq, "ParquetFile")
    writes = Counted(monkeypatch, redo, "write_part")
    index = forget_transient_errors(artifact, index, lambda _: None)
    assert looks.calls == 3
    assert reads.calls == writes.calls == len(index.parts()) == 1
    rows = [row for shard in range(index.num_shards) for row in index.read_shard(shard).to_pylist()]
    assert [row["reason"] for row in rows] == [None] * (many + 1)
    assert sum(row["slot"] is not None for row in rows) == index.num_images == many // 2


def test_an_index_with_its_columns_in_another_order_is_mended(corpus, jpeg, tmp_path):
    """As versions before this one wrote it."""
    artifact = Artifact(tmp_path / "out")
    index = indexed(corpus, artifact)
    for key in index.parts():
        file = pq.ParquetFile(index.store.locate(key))
        order = sorted(file.schema_arrow.names)
        groups = [file.read_row_group(n).select(order) for n in range(file.num_row_groups)]
        with pq.ParquetWriter(index.store.locate(key), groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group)
    find_the_missing(corpus, jpeg)
    assert_mended(forget_transient_errors(artifact, index, lambda _: None), artifact)


def run_with(outcomes: list[tuple[int, int]], before: Tally | None, tmp_path: Path, monkeypatch) -> None:
    """Follow shards of (samples, failed samples) at an error rate of 0.5."""
    rows = [
        {"shard": n, "status": Status.COMMITTED, "failure": None, "stage": None, "samples": samples,
         "failed_samples": failed, "kept": 0, "errors": failed, "images": 0, "device": None, "batch_size": 8,
         "reasons": json.dumps({"missing_file": failed})}
        for n, (samples, failed) in enumerate(outcomes)
    ]  # fmt: skip
    monkeypatch.setattr(shards, "_outcomes", lambda pending, settings, stop: iter(rows))
    (tmp_path / "out").mkdir()
    encode = SimpleNamespace(batch_size=8)
    settings = SimpleNamespace(max_error_rate=0.5, placement=Placement("cpu", 0), encode=encode)
    artifact = Artifact(tmp_path / "out")
    with run_folder(artifact.store) as folder:
        run_shards(artifact, folder, [], 0, settings, lambda _: None, before)  # type: ignore[arg-type]


def test_a_redo_of_the_worst_shards_is_held_against_the_whole_corpus(tmp_path, monkeypatch):
    """200 of 200 redone samples fail again, in a corpus of 10,200 where that is a fiftieth."""
    run_with([(200, 200)], Tally(samples=10_000, failed_samples=10), tmp_path, monkeypatch)


@pytest.mark.parametrize("before", [None, Tally(samples=300, failed_samples=149)])
def test_too_many_failures_still_stop_a_run(before, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"inputs failed, more than --max-error-rate 0\.5: missing_file"):
        run_with([(200, 120)], before, tmp_path, monkeypatch)
