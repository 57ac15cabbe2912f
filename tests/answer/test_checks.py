"""What is refused before any prompt is answered."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.answer.checks import check_metrics, check_model, check_prompts, check_stored, corpus_of, survey
from pipeline.answer.settings import AnswerSettings
from pipeline.artifact.artifact import Artifact
from pipeline.budget import parse_budget
from pipeline.errors import UserError
from pipeline.grading.grader import parse_metrics
from schemas.records import JobRecord
from schemas.tables import SCHEMA_VERSION


@pytest.fixture
def pruned(small_pruned, tmp_path) -> Artifact:
    return Artifact(small_pruned(tmp_path / "out"))


def test_a_survey_reads_each_record_once(pruned, monkeypatch):
    read: list[int] = []
    own = Artifact._commit_of
    monkeypatch.setattr(Artifact, "_commit_of", lambda self, *of: read.append(of[0]) or own(self, *of))
    found = survey(pruned)
    assert read == [0, 1]
    assert found.hashes == {e.path: e.sha256 for record in pruned.commits() for e in record.files.values()}
    assert found.num_shards == 2
    assert found.posable == {0: 2, 1: 2}
    assert found.counts["images"] == 6
    assert found.selections == [f"selections/part-0000000{n}.parquet" for n in (0, 1)]
    check_prompts(pruned, found)
    read.clear()
    assert survey(pruned, found) is found
    assert read == []
    pruned.forget([1])
    pruned.reopen()
    assert survey(pruned, found).num_shards == 1
    assert read == [0]


def test_missing_selections_are_found_before_any_work(pruned):
    (Path(pruned.address) / "selections" / "part-00000001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00000001\.parquet is missing"):
        survey(pruned)


@pytest.mark.parametrize("tokens", ["1", "2", "0.5", "0.1", "all"])
def test_what_is_stored_can_be_asked_for(pruned, tokens):
    check_stored(pruned, survey(pruned), parse_budget(tokens, "--tokens"), tokens)


@pytest.mark.parametrize("tokens", ["3", "100", "0.7", "1.0"])
def test_more_than_is_stored_is_refused(pruned, tokens):
    """Two of four tokens are stored."""
    with pytest.raises(UserError, match=rf"--tokens {tokens}: 6 images have fewer tokens stored in .* \(down to 2\)"):
        check_stored(pruned, survey(pruned), parse_budget(tokens, "--tokens"), tokens)


def recount(pruned: Artifact, counts: dict[str, int]) -> None:
    pruned.reopen()
    for record in list(pruned.commits()):
        pruned.commit(replace(record, counts=counts))


def test_prompts_that_cannot_be_posed_are_counted_by_reason(pruned):
    recount(pruned, {"prompts": 3, "prompts.empty_prompt": 2, "prompts.missing_file": 1})
    with pytest.raises(UserError, match=r"none of 6 prompts can be posed: 4 without text .*, 2 of samples that failed"):
        check_prompts(pruned, survey(pruned))


def test_a_corpus_without_prompts_is_refused(pruned):
    recount(pruned, {"images": 3})
    with pytest.raises(UserError, match="holds no prompt to answer"):
        check_prompts(pruned, survey(pruned))
    assert corpus_of(pruned) is None, "it has no index"


MODEL = {"family": "f", "config": "c", "weights": "w", "projector": "p", "processor": "i"}


@pytest.mark.parametrize("part", ["family", "config", "weights", "projector", None])
def test_every_part_of_the_model_must_be_the_one_that_pruned(pruned, part):
    job = JobRecord("prune", SCHEMA_VERSION, {}, MODEL, {})
    if part is None:
        check_model("m", {**MODEL, "processor": "another"}, pruned, job)
        return
    with pytest.raises(UserError, match=rf"--model m is not the model that pruned .*: its {part} differs"):
        check_model("m", {**MODEL, part: "another"}, pruned, job)


def test_metrics_that_the_references_are_too_few_for_are_refused(pruned):
    """Each prompt has one."""
    found = survey(pruned)
    check_metrics(pruned, found, parse_metrics(["anls", "t=bleu"]))
    for metric in ("vqa", "t=vqa"):
        with pytest.raises(UserError, match=rf"--metric {metric}: vqa takes 4 references .* no prompt .* more than 1"):
            check_metrics(pruned, found, parse_metrics([metric]))


def test_a_metric_that_takes_all_references_is_for_the_grade_job(tmp_path):
    with pytest.raises(
        UserError, match=r"--metric caption=cider_d .* then run zoo-prune grade --metric caption=cider_d"
    ):
        AnswerSettings(pruned="p", model="m", output=str(tmp_path), metric=("exact", "caption=cider_d"))
