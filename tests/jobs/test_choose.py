"""Choosing a budget on a sample of the bundled corpus: what is measured is what the other jobs would give."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import choose_budget as command
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.choosing.job import choose_budget
from pipeline.choosing.settings import ChooseSettings
from pipeline.errors import UserError
from pipeline.prune.job import prune_corpus
from pipeline.prune.settings import PruneSettings
from schemas.choice import Choice

SAMPLE, NEW_TOKENS = 5, 24
SHORT = {"sample": SAMPLE, "shard_size": 3, "max_new_tokens": NEW_TOKENS, "tokens": ("16", "0.125")}


def run(output: Path, corpus: object, model: str, said: list[str] | None = None, **changes: object) -> Choice:
    settings = {"corpus": corpus, "model": model, "metric": ("caption=object_f1",), **SHORT, **changes}
    result = choose_budget(ChooseSettings(output=str(output), **settings), (said if said is not None else []).append)
    assert result.choice is not None
    return result.choice


@pytest.fixture(scope="module")
def corpus(scenes_tars) -> str:
    """A third of the bundled corpus."""
    return str(scenes_tars.replace("{000000..000002}", "000000"))


@pytest.fixture(scope="module")
def chosen(without_ray, corpus, tiny_llava, tmp_path_factory) -> tuple[Path, Choice]:
    output = tmp_path_factory.mktemp("choose") / "out"
    with without_ray():
        return output, run(output, (corpus,), tiny_llava)


def trials(output: Path) -> list[dict]:
    return [row for path in sorted((output / "trials" / "trials").iterdir()) for row in pq.read_table(path).to_pylist()]


def images(output: Path) -> set[str]:
    parts = (output / "selections").iterdir()
    return {row["image_id"] for path in parts for row in pq.read_table(path, columns=["image_id"]).to_pylist()}


def test_every_prompt_of_the_sample_is_tried_with_everything(chosen):
    output, choice = chosen
    found = trials(output)
    prompts = {row["prompt_id"] for row in found}
    runs = {(row["selector"], row["seed"], row["budget"]) for row in found}
    controls = [("random", seed) for seed in (0, 1, 2)] + [("uniform_grid", 0), ("zoo", 0)]
    assert runs == {(None, 0, "all")} | {(name, seed, k) for name, seed in controls for k in ("16", "0.125")}
    assert len(found) == len(prompts) * len(runs)
    assert {row["image_id"] for row in found} == images(output / "pruned")
    errors = [row for path in (output / "pruned" / "errors").iterdir() for row in pq.read_table(path).to_pylist()]
    assert len(images(output / "pruned")) == SAMPLE - sum(row["prompt_id"] is None for row in errors)
    assert {(row["budget"], row["tokens"]) for row in found} == {("all", 256), ("16", 16), ("0.125", 32)}
    graded = scored(found)
    assert (choice.sample.images, choice.sample.prompts) == (len({row["image_id"] for row in graded}), len(graded))
    assert [one.tokens for one in choice.budgets] == ["0.125", "16"]
    assert choice.sample.metrics == ("exact", "object_f1")


def scored(found: list[dict]) -> list[dict]:
    return [row for row in found if row["selector"] is None and row["metric"] != "agreement"]


@pytest.mark.parametrize("selector", ["zoo", "random", "uniform_grid"])
def test_it_is_what_pruning_by_that_selector_and_answering_gives(
    chosen, selector, work_here, corpus, tiny_llava, tmp_path
):
    """Also of the controls, which no tower ranked here."""
    settings = {"corpus": (corpus,), "model": tiny_llava, "max_tokens": "32", "selector": selector}
    pruned, answers = tmp_path / "pruned", tmp_path / "answers"
    prune_corpus(PruneSettings(output=str(pruned), sample=SAMPLE, sample_seed=0, **settings), lambda _: None)
    asked = {"tokens": "16", "max_new_tokens": NEW_TOKENS, "metric": ("caption=object_f1",)}
    answer_corpus(AnswerSettings(pruned=str(pruned), model=tiny_llava, output=str(answers), **asked), lambda _: None)
    expected = {
        row["prompt_id"]: (row["answer"], row["finish_reason"], row["score"])
        for path in (answers / "answers").iterdir()
        for row in pq.read_table(path).to_pylist()
    }
    found = {
        row["prompt_id"]: (row["answer"], row["finish_reason"], row["score"] if row["metric"] != "agreement" else None)
        for row in trials(chosen[0])
        if (row["selector"], row["seed"], row["budget"]) == (selector, 0, "16")
    }
    assert found == expected


def test_a_sample_cannot_grow(work_here, chosen, corpus, scenes_manifest, tiny_llava):
    with pytest.raises(UserError, match="--sample: a sample can't grow; choose another --output"):
        run(chosen[0], (corpus, scenes_manifest), tiny_llava)


def test_it_resumes_and_another_tolerance_answers_nothing_again(work_here, chosen, corpus, tiny_llava):
    output, first = chosen
    before = {
        path: path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file() and path.name not in ("choice.json", "_lock")
    }
    again = run(output, (corpus,), tiny_llava, tolerance=50.0)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [(one.score, one.bound) for one in again.budgets] == [(one.score, one.bound) for one in first.budgets]
    assert again.tolerance == 50.0
    written = Choice.model_validate_json((output / "choice.json").read_text())
    assert written == again
    with pytest.raises(UserError, match="other settings:\n  max_new_tokens: 24 -> 9"):
        run(output, (corpus,), tiny_llava, max_new_tokens=9)


def test_without_references_answers_are_compared_with_those_at_all_tokens(work_here, tiny_llava, jpeg, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    choice = run(tmp_path / "out", (str(tmp_path),), tiny_llava, prompt=("what color ?",), metric=(), tokens=("8",))
    assert choice.sample.metrics == ("agreement",)
    assert choice.all_tokens == 100.0
    assert choice.sample.images == 3
    full = {row["prompt_id"]: row["answer"] for row in trials(tmp_path / "out") if row["selector"] is None}
    for row in trials(tmp_path / "out"):
        assert row["score"] == (row["answer"].strip() == full[row["prompt_id"]].strip())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("all",), "--tokens all: all tokens are what budgets are compared with"),
        (("16", "8", "16"), "--tokens 16 is given more than once; leave the others out"),
        (("256", "16"), "--tokens 256: no image of the sample has more tokens, so it prunes nothing"),
        (("0.125", "32"), r"--tokens 0\.125 and 32 keep as many tokens of every image; leave one of them out"),
    ],
)
def test_budgets_that_would_tell_nothing_are_refused(work_here, chosen, corpus, tiny_llava, tokens, message):
    with pytest.raises(UserError, match=message):
        run(chosen[0], (corpus,), tiny_llava, tokens=tokens)


def test_the_output_of_another_job_is_refused(work_here, chosen, corpus, tiny_llava, tmp_path):
    pruned = chosen[0] / "pruned"
    before = sorted(pruned.rglob("*"))
    with pytest.raises(UserError, match=r"pruned is the output of another job \(prune\); choose an empty"):
        run(pruned, (corpus,), tiny_llava)
    assert sorted(pruned.rglob("*")) == before


def test_a_metric_that_can_score_no_prompt_is_refused_before_any_is_answered(work_here, corpus, tiny_llava, tmp_path):
    with pytest.raises(UserError, match="--metric color=pope: pope is about yes or no, but no prompt of type color in"):
        run(tmp_path / "out", (corpus,), tiny_llava, metric=("color=pope",))
    assert not (tmp_path / "out" / "trials").exists()


def test_the_command_prints_the_table_and_the_findings(work_here, chosen, corpus, tiny_llava, capsys):
    output, choice = chosen
    arguments = ["--corpus", corpus, "--model", tiny_llava, "--output", str(output), "--sample", str(SAMPLE)]
    arguments += ["--shard-size", "3", "--max-new-tokens", str(NEW_TOKENS), "--tokens", "16", "--tokens", "0.125"]
    assert command.main([*arguments, "--metric", "caption=object_f1"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if " safe" in line or "not tested" in line][:2] == [
        "0.125",
        "16",
    ]
    for sentence in choice.findings:
        assert sentence in printed
    assert json.loads((output / "choice.json").read_text())["findings"] == list(choice.findings)
