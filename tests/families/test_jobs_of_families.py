"""Families through the real jobs: pruned, answered, asked in SQL; what a family refuses is refused before any work."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.prune.job import PruneSettings, prune_corpus
from pipeline.prune.select import SelectSettings, select_tokens
from pipeline.report.query import ask, connect

PROMPTS = ["what is this", "how many red <image> w3"]


def corpus_of(case: Any, folder: Path) -> str:
    """The case's images with two prompts each, as a JSONL manifest."""
    lines = []
    for number, image in enumerate(case.images):
        image.save(folder / f"{number}.png")
        prompts = [{"id": f"{number}-{n}", "prompt": prompt} for n, prompt in enumerate(PROMPTS)]
        lines.append(json.dumps({"id": str(number), "image": f"{number}.png", "prompts": prompts}))
    manifest = folder / "corpus.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return str(manifest)


@pytest.mark.parametrize(
    ("name", "selector", "positions"),
    [
        ("qwen2_5_vl", "zoo", None),
        pytest.param("llava_next", "zoo", "original", marks=pytest.mark.slow),
        pytest.param("gemma3", "zoo", None, marks=pytest.mark.slow),
        pytest.param("smolvlm", "divprune", None, marks=pytest.mark.slow),
    ],
)
def test_jobs_answer_as_the_stages_do(work_here, case, tmp_path, name, selector, positions):
    case = case(name)
    pruned, answered = str(tmp_path / "pruned"), str(tmp_path / "answers")
    said: list[str] = []
    settings = PruneSettings(
        corpus=(corpus_of(case, tmp_path),), model=str(case.folder), output=pruned, max_tokens="8", selector=selector,
        shard_size=3, batch_size=5,
    )  # fmt: skip
    prune_corpus(settings, said.append)
    record = json.loads((tmp_path / "pruned" / "_job.json").read_text())
    told = {"gemma3": "directional in place of closed_form", "smolvlm": "the projector is linear"}.get(name)
    assert (record["notes"] == []) == (told is None)
    if told:
        assert told in record["notes"][0]
        assert record["notes"][0] in said
    answers = {"pruned": pruned, "model": str(case.folder), "output": answered}
    answer_corpus(AnswerSettings(**answers, max_new_tokens=8, positions=positions), lambda _: None)
    db = connect(tmp_path / "pruned", [tmp_path / "answers"])
    rows = ask(db, "select * from answers order by prompt_id").to_pylist()
    asked = [(image, prompt) for image in range(len(case.images)) for prompt in PROMPTS]
    kept = case.kept(Budget("count", 8), selector)
    expected = case.replies(asked, kept, batch_size=4, max_new_tokens=8, answerer=case.answerer(positions))
    assert [row["answer_tokens"] for row in rows] == [reply.token_ids for reply in expected]
    tokens = ask(db, "select count(*) as n, count(pick) as kept from tokens").to_pylist()[0]
    assert tokens == {"n": sum(len(image.projected_NO) for image in case.encoded), "kept": 8 * len(case.images)}
    if name == "qwen2_5_vl":
        for wrong in ("compact", "original"):
            with pytest.raises(UserError, match=f"--positions {wrong}: a qwen2_5_vl model numbers its kept tokens"):
                answer_corpus(AnswerSettings(**answers, positions=wrong), lambda _: None)


@pytest.mark.parametrize("name", ["paligemma", "idefics3", "smolvlm"])
def test_zoo_on_a_linear_projector_is_refused_before_any_work(case, tmp_path, name):
    case = case(name)
    output = tmp_path / "out"
    settings = PruneSettings(corpus=(corpus_of(case, tmp_path),), model=str(case.folder), output=str(output))
    with pytest.raises(UserError, match="the projector is linear"):
        prune_corpus(settings, lambda _: None)
    assert not output.exists()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "paligemma"])
def test_the_attention_of_a_tower_without_class_token_is_refused_before_any_work(case, tmp_path, name):
    case = case(name)
    output = tmp_path / "out"
    corpus = (corpus_of(case, tmp_path),)
    settings = PruneSettings(corpus=corpus, model=str(case.folder), output=str(output), selector="cls_attention")
    with pytest.raises(UserError, match="--selector cls_attention: it takes the attention of a CLIP tower"):
        prune_corpus(settings, lambda _: None)
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "selector", "centring"),
    [
        ("qwen3_vl", "divprune_centered", "patches"),
        ("qwen2_5_vl", "zoo_centered", "patches"),
        ("paligemma", "divprune_centered", "projected"),
        ("llava", "cls_attention", None),
    ],
)
def test_the_job_record_names_the_form_of_centring(work_here, case, tmp_path, name, selector, centring):
    """And the job ranks by that form."""
    case = case(name)
    output = tmp_path / "out"
    corpus = (corpus_of(case, tmp_path),)
    prune_corpus(
        PruneSettings(
            corpus=corpus, model=str(case.folder), output=str(output), selector=selector, max_tokens="all", batch_size=5
        ),
        lambda _: None,
    )
    assert json.loads((output / "_job.json").read_text())["settings"].get("centring") == centring
    settings = SelectSettings(Budget("all"), selector, centring=centring or "projected")
    ids = [hashlib.sha256((tmp_path / f"{n}.png").read_bytes()).hexdigest() for n in range(len(case.images))]
    selections = select_tokens(case.encoded, ids, case.encoder.projector, settings)
    expected = {image_id: one.ranking_K.tolist() for image_id, one in zip(ids, selections, strict=True)}
    rows = ask(connect(output, []), "select image_id, token from tokens order by pick").to_pylist()
    ranked = {image_id: [row["token"] for row in rows if row["image_id"] == image_id] for image_id in ids}
    assert ranked == expected
