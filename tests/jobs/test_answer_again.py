"""Answers name the files they were made from: what the pruned artifact changes is answered again, and nothing else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.answer import job as answer_module
from pipeline.answer.checks import survey
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.errors import UserError
from pipeline.prune.job import PruneSettings, prune_corpus
from pipeline.report.query import ask, connect

SHARD = 4


@pytest.fixture
def corpus(tmp_path, jpeg):
    """Eight images in two shards; 1.jpg is missing."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for n in range(8):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    lines = [{"image": f"{n}.jpg", "prompts": [{"id": f"p{n}", "prompt": f"what {n}?"}]} for n in range(8)]
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "1.jpg").rename(folder / "away")
    return folder / "m.jsonl"


@pytest.fixture
def prune_again(work_here, tiny_llava):
    def run(output, *inputs, **changes):
        paths = tuple(map(str, inputs))
        settings = PruneSettings(
            corpus=paths, model=tiny_llava, output=str(output), max_tokens="4", shard_size=SHARD, **changes
        )
        prune_corpus(settings, lambda _: None)
        return output

    return run


@pytest.fixture
def answer_again(work_here, tiny_llava):
    """Run the answer job; what it said, and the numbers of the shards whose commit records are new."""

    def run(pruned, output, **changes):
        before = inodes(output)
        said: list[str] = []
        settings = {"model": tiny_llava, "tokens": "2", "max_new_tokens": 1, **changes}
        result = answer_corpus(AnswerSettings(pruned=str(pruned), output=str(output), **settings), said.append)
        return " ".join(said), {n for n, inode in inodes(output).items() if before.get(n) != inode}, result

    return run


def inodes(output: Path) -> dict[int, int]:
    return {int(path.stem): path.stat().st_ino for path in output.glob("_commits/*.json")}


def sources_are_in_force(pruned: Path, output: Path) -> bool:
    hashes = survey(Artifact(pruned)).hashes
    return all(record.sources.items() <= hashes.items() for record in Artifact(output).commits())


def test_redone_and_new_shards_are_answered_again_and_no_other(corpus, prune_again, answer_again, jpeg, tmp_path):
    pruned, output = tmp_path / "pruned", tmp_path / "answers"
    prune_again(pruned, corpus)
    assert answer_again(pruned, output)[1] == {0, 1}

    more = corpus.parent / "more.jsonl"
    (corpus.parent / "new.jpg").write_bytes(jpeg(77))
    lines = [{"image": name, "prompts": [{"id": f"q-{name}", "prompt": "and this?"}]} for name in ("new.jpg", "0.jpg")]
    more.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prune_again(pruned, corpus, more)
    assert answer_again(pruned, output)[1] == {2}
    shards_used = {r.shard: {int(Path(p).stem[-8:]) for p in r.sources} for r in Artifact(output).commits()}
    assert shards_used == {0: {0}, 1: {1}, 2: {0, 2}}

    (corpus.parent / "away").rename(corpus.parent / "1.jpg")
    prune_again(pruned, corpus, more, redo_errors=True)
    with pytest.raises(UserError, match="shard 00000000 was not answered from what"):
        connect(pruned, [output])
    said, answered, _ = answer_again(pruned, output)
    assert "2 shards are answered again, the first is 00000000" in said
    assert answered == {0, 2}, "shard 0 was redone, shard 2 asks about an image of it"
    assert sources_are_in_force(pruned, output)
    assert Artifact(output).finished
    db = connect(pruned, [output])
    assert ask(db, "select count(*) as n from answers join prompts using (prompt_id)").to_pylist() == [{"n": 10}]

    rotten = pruned / "features" / "shard-00000001.tar"
    rotten.write_bytes(b"x" * rotten.stat().st_size)
    prune_again(pruned, corpus, more, verify=True)
    with Artifact(output).locked():  # nothing to do needs no lock
        said, answered, _ = answer_again(pruned, output)
    assert "nothing to do" in said, "the shard was redone to the same bytes"
    assert answered == set()


def test_answers_over_another_corpus_are_refused(pruned_64, answer_again, tmp_path):
    other, output = tmp_path / "other", tmp_path / "answers"
    answer_again(pruned_64, output)
    shutil.copytree(pruned_64, other)
    index = json.loads((other / "_index" / "index.json").read_text())
    index["generations"][0]["inputs"][0]["path"] = "/elsewhere/other.tar"
    (other / "_index" / "index.json").write_text(json.dumps(index))
    before = inodes(output)
    with pytest.raises(
        UserError, match=r"other settings:\n  pruned\.corpus\.first: .*\.tar' -> '/elsewhere/other\.tar'"
    ):
        answer_again(other, output)
    assert inodes(output) == before


def test_a_pruned_shard_that_changes_while_it_is_answered_is_not_called_done(
    pruned_64, answer_again, monkeypatch, tmp_path
):
    pruned, output = tmp_path / "pruned", tmp_path / "answers"
    shutil.copytree(pruned_64, pruned)

    run_shards = answer_module._run_shards

    def then_changed(*arguments):
        run = run_shards(*arguments)
        drop_a_prompt(Artifact(pruned), 1)
        return run

    monkeypatch.setattr(answer_module, "_run_shards", then_changed)
    said, _, result = answer_again(pruned, output)
    assert "1 shard of " in said
    assert "changed while they were answered" in said
    assert set(result.failures) == {1}
    assert not Artifact(output).finished
    assert Artifact(output).committed_shards() == [0, 2, 3, 4]
    connect(pruned, [output])
    monkeypatch.setattr(answer_module, "_run_shards", run_shards)
    _, answered, result = answer_again(pruned, output)
    assert (answered, result.failures) == ({1}, {})
    assert sources_are_in_force(pruned, output)
    assert Artifact(output).finished


def drop_a_prompt(artifact: Artifact, shard: int) -> None:
    """Redo a shard to other bytes, as a prune job would: uncommitted, rewritten, committed, finished."""
    record = artifact.read_commit(shard)
    assert record is not None
    artifact.reopen()
    artifact.forget([shard])
    rows = pq.read_table(Path(artifact.address) / record.files["prompts"].path)
    entry = write_table(artifact.store, "prompts", shard, rows.slice(0, len(rows) - 1))
    artifact.commit(replace(record, files={**record.files, "prompts": entry}))
    artifact.finish({"num_shards": 5})


def test_a_lost_index_is_named_and_made_anew(corpus, prune_again, answer_again, tmp_path):
    pruned = prune_again(tmp_path / "out", corpus)
    answers = tmp_path / "answers"
    answer_again(pruned, answers)
    shutil.rmtree(pruned / "_index")
    with pytest.raises(UserError, match="has lost its _index; run its prune job again"):
        answer_again(pruned, answers)
    prune_again(pruned, corpus)
    said, changed, _ = answer_again(pruned, answers)
    assert changed == set()
    assert "nothing to do" in said
