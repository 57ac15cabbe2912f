"""Answers from pruned inputs: equal to the untouched model where they must be, resumable, only from the right model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.errors import UserError

NEW_TOKENS = 40
SHORT = {"tokens": "8", "max_new_tokens": 4}


@pytest.fixture(scope="module")
def answer(without_ray, tiny_llava: str) -> Callable[..., dict[str, dict]]:
    """Run the answer job; answers by prompt id."""

    def run(pruned: Path, output: Path, **changes: object) -> dict[str, dict]:
        with without_ray():
            return answers_of(pruned, output, tiny_llava, changes)

    return run


@pytest.fixture(scope="module")
def answered_8(
    pruned_64: Path, answer: Callable[..., dict[str, dict]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Answers at 8 tokens; to be copied where they are changed."""
    output = tmp_path_factory.mktemp("answered") / "8"
    answer(pruned_64, output, **SHORT)
    return output


def answers_of(pruned: Path, output: Path, model: str, changes: dict) -> dict[str, dict]:
    """Run the answer job; answers by prompt id."""
    settings = {"model": model, "max_new_tokens": NEW_TOKENS, **changes}
    answer_corpus(AnswerSettings(pruned=str(pruned), output=str(output), **settings), lambda _: None)
    return read_answers(output)


def read_answers(output: Path) -> dict[str, dict]:
    manifest = json.loads((output / "manifest.json").read_text())
    rows = [
        row for s in manifest["shards"] for row in pq.read_table(output / s["files"]["answers"]["path"]).to_pylist()
    ]
    answers = {row["prompt_id"]: row for row in rows}
    assert len(answers) == len(rows), "one answer a prompt"
    return answers


def look_once(model: torch.nn.Module) -> None:
    """What the model makes of an image is computed for its first prompt and remembered for the others."""
    look, seen = model.get_image_features, {}

    def remember(pixel_values: torch.Tensor, **settings: object) -> BaseModelOutputWithPooling:
        keys = [one.numpy().tobytes() for one in pixel_values]
        new = {key: number for number, key in enumerate(keys) if key not in seen}
        if new:
            found = look(pixel_values=pixel_values[list(new.values())], **settings).pooler_output
            seen.update(zip(new, found, strict=True))
        return BaseModelOutputWithPooling(pooler_output=[seen[key] for key in keys])

    model.get_image_features = remember


@torch.inference_mode()
def untouched_answers(checkpoint: str, prompts: list[dict], images: dict[str, Image.Image]) -> dict[str, list[int]]:
    """`model.generate` of the stock model on raw images, through its own processor and chat template."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    look_once(model.model)
    processor = LlavaProcessor.from_pretrained(checkpoint)
    ends = model.generation_config.eos_token_id
    answers = {}
    prompts = sorted(prompts, key=lambda prompt: (prompt["type"], prompt["prompt"]))  # long answers together
    for begin in range(0, len(prompts), 16):  # more at once take longer: they outgrow the processor's cache
        batch = prompts[begin : begin + 16]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": p["prompt"]}]}],
                add_generation_prompt=True,
            )
            for p in batch
        ]
        inputs = processor(images=[images[p["image_id"]] for p in batch], text=texts, padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        for prompt, tokens in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            answers[prompt["prompt_id"]] = tokens[: tokens.index(ends)] if ends in tokens else tokens
    return answers


def answerable(pruned: Path) -> list[dict]:
    manifest = json.loads((pruned / "manifest.json").read_text())
    rows = [
        row for s in manifest["shards"] for row in pq.read_table(pruned / s["files"]["prompts"]["path"]).to_pylist()
    ]
    return [row for row in rows if row["status"] == "ok"]


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow, id="all"), pytest.param(8, id="eighth")])
def test_keep_all_equals_the_untouched_model(share, pruned_all, answer, raw_images, tiny_llava, tmp_path):
    """On every prompt, or on one of eight."""
    where = None if share == 1 else f"hash(prompt_id) % {share} = 0"
    answers = answer(pruned_all, tmp_path / "all", tokens="all", where=where)
    assert {row["tokens"] for row in answers.values()} == {256}
    prompts = answerable(pruned_all)
    assert len(prompts) > 1600
    if share == 1:
        assert answers.keys() == {prompt["prompt_id"] for prompt in prompts}
    assert len(answers) > 0.8 * len(prompts) / share
    expected = untouched_answers(tiny_llava, [one for one in prompts if one["prompt_id"] in answers], raw_images)
    assert expected.keys() == answers.keys()
    different = [i for i, tokens in expected.items() if answers[i]["answer_tokens"] != tokens]
    assert different == []


def test_a_prefix_of_a_larger_artifact_is_the_smaller_artifact(prune, answer, tmp_path):
    for tokens in ("64", "32"):
        prune(tmp_path / f"pruned{tokens}", max_tokens=tokens, limit=40, shard_size=32)
    from_64 = answer(tmp_path / "pruned64", tmp_path / "a", tokens="32", max_new_tokens=16)
    from_32 = answer(tmp_path / "pruned32", tmp_path / "b", tokens="all", max_new_tokens=16)
    keep = ("answer", "answer_tokens", "tokens", "finish_reason")
    assert {i: [row[k] for k in keep] for i, row in from_64.items()} == {
        i: [row[k] for k in keep] for i, row in from_32.items()
    }
    assert {row["tokens"] for row in from_64.values()} == {32}


def test_resume_skips_and_repairs(pruned_64, answered_8, answer, tmp_path):
    output = shutil.copytree(answered_8, tmp_path / "out")
    first = read_answers(answered_8)
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()}
    assert answer(pruned_64, output, **SHORT) == first
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()} == before
    (output / "answers" / "part-00000003.parquet").unlink()
    again = answer(pruned_64, output, **SHORT)
    assert {i: row["answer_tokens"] for i, row in again.items()} == {
        i: row["answer_tokens"] for i, row in first.items()
    }
    with pytest.raises(UserError, match="other settings"):
        answer(pruned_64, output, tokens="9", max_new_tokens=4)


def test_captions_are_scored_by_their_objects(pruned_64, answered_8, answer, tmp_path):
    exact = read_answers(answered_8)
    rows = answer(pruned_64, tmp_path / "out", metric=("caption=object_f1",), **SHORT)
    assert {i: (row["answer"], row["correct"]) for i, row in rows.items()} == {
        i: (row["answer"], row["correct"]) for i, row in exact.items()
    }
    for prompt_id, row in rows.items():
        assert row["metric"] == ("object_f1" if row["type"] == "caption" else "exact")
        assert (row["score"] is None) == (row["correct"] is None)
        if row["type"] != "caption":
            assert row["score"] == exact[prompt_id]["score"]
            assert row["score"] in (None, float(row["correct"] or 0))
    scores = [row["score"] for row in rows.values() if row["type"] == "caption" and row["score"] is not None]
    assert any(0 < score < 1 for score in scores)


def test_a_metric_of_a_type_that_no_prompt_has_is_refused(pruned_64, answer, tmp_path):
    with pytest.raises(
        UserError, match=r"--metric captions=object_f1: .* no prompt of type captions; its types are cap"
    ):
        answer(pruned_64, tmp_path / "out", metric=("captions=object_f1",), **SHORT)
    assert not (tmp_path / "out").exists()


def test_more_tokens_than_stored_are_refused(pruned_64, answer, tmp_path):
    with pytest.raises(UserError, match=r"--tokens 65: 307 images .*down to 64"):
        answer(pruned_64, tmp_path / "out", tokens="65")


def altered(tiny_llava: str, folder: Path, part: str) -> str:
    """A copy of the model with one bit of one tensor changed."""
    shutil.copytree(tiny_llava, folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    name = next(n for n in header if part in n)
    data[8 + int.from_bytes(data[:8], "little") + header[name]["data_offsets"][0]] ^= 1
    weights.write_bytes(data)
    return str(folder)


def test_another_model_is_refused(pruned_64, answer, tiny_llava, tmp_path):
    with pytest.raises(UserError, match="its projector differs"):
        answer(pruned_64, tmp_path / "out", model=altered(tiny_llava, tmp_path / "other", "multi_modal_projector"))


def test_another_tower_does_not_resume_the_pruning(pruned_64, prune, tiny_llava, tmp_path):
    with pytest.raises(UserError, match=r"other settings:\n  model\.vision: "):
        prune(pruned_64, max_tokens="64", model=altered(tiny_llava, tmp_path / "other", "vision_tower"))


def test_another_language_model_does_not_resume_the_answers(pruned_64, answered_8, answer, tiny_llava, tmp_path):
    with pytest.raises(UserError, match=r"other settings:\n  model\.language: "):
        answer(pruned_64, answered_8, model=altered(tiny_llava, tmp_path / "language", "layers.0"), **SHORT)
    # The vision tower plays no part: it is not read, and may be another.
    answer(pruned_64, answered_8, model=altered(tiny_llava, tmp_path / "tower", "vision_tower"), **SHORT)


def test_settings_that_answers_cannot_follow_are_refused_before_any_work(pruned_64, answer, tiny_llava, tmp_path):
    other = shutil.copytree(tiny_llava, tmp_path / "other")
    settings = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps({**settings, "stop_strings": ["."]}))
    with pytest.raises(UserError, match="stop_strings"):
        answer(pruned_64, tmp_path / "out", model=str(other))
    assert not (tmp_path / "out").exists()


def test_an_unfinished_artifact_is_refused(pruned_64, answer, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pruned_64, copy)
    (copy / "_SUCCESS").unlink()
    with pytest.raises(UserError, match="not finished"):
        answer(copy, tmp_path / "out")
