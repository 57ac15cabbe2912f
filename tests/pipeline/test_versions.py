"""Outputs of 0.1.0 (schema version 1): refused in one sentence by everything that reads an output."""

import json
from pathlib import Path

import pytest

from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.loader.shard import ShardLoader
from pipeline.prune.job import PruneSettings, prune_corpus
from pipeline.report.query import connect

ONE_SENTENCE = r"_job\.json has schema version 1, expected 2: another version of zoo-prune wrote it; "


@pytest.fixture
def old(small_pruned, as_version_1, tmp_path) -> Path:
    root: Path = small_pruned(tmp_path / "old")
    (root / "_index").mkdir()
    (root / "_index" / "index.json").write_text(json.dumps({"generations": [{"of": "another form"}]}))
    as_version_1(root)
    return root


def test_every_reader_refuses_it(old, small_pruned, small_answers, as_version_1, tiny_llava, tmp_path):
    new = small_pruned(tmp_path / "new")
    old_answers = small_answers(tmp_path / "answers", new)
    as_version_1(old_answers)
    (tmp_path / "c.jsonl").write_text("{}\n")
    readers = {
        "query": lambda: connect(old),
        "query of answers": lambda: connect(new, [old_answers]),
        "answer": lambda: answer_corpus(
            AnswerSettings(pruned=str(old), model=tiny_llava, output=str(tmp_path / "out")), print
        ),
        "resume": lambda: prune_corpus(
            PruneSettings(corpus=(str(tmp_path / "c.jsonl"),), model=tiny_llava, output=str(old)), print
        ),
        "load": lambda: ShardLoader(Artifact(old)),
    }
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    for name, read in readers.items():
        with pytest.raises(UserError, match=ONE_SENTENCE) as caught:
            read()
        assert "\n" not in str(caught.value), name
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_a_later_version_is_refused_too(small_pruned, tmp_path):
    root = small_pruned(tmp_path / "out")
    job = json.loads((root / "_job.json").read_text())
    (root / "_job.json").write_text(json.dumps({"schema_version": 3, "job": job}))
    with pytest.raises(UserError, match="has schema version 3, expected 2"):
        connect(root)
