"""Text is text: a prompt is answered as the untouched model would answer it, or refused alone with a reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.answer.engine import Reply
from pipeline.budget import Budget
from pipeline.families.checkpoint import open_checkpoint
from tests.families.models import SPECIAL, TINY
from tests.families.test_parity import flat_features, stock_ids, token_types

NEW_TOKENS = 6
# What stands for images or videos in the model's own processor, beside the placeholder that says where the image goes.
REFUSED = {
    **{key: {"<|video_pad|>"} for key in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    **{key: {"<video>"} for key in ("internvl", "llava_onevision", "smolvlm")},
    "gemma3": {"<image_soft_token>"},
}
HARMLESS = ["what is this", "w9 w1"]


def posed(case: Any, prompts: list[str], answerer: Any = None) -> list[Reply]:
    asked = [(1, prompt) for prompt in prompts]
    kept = case.kept(Budget("all"))
    replies: list[Reply] = case.replies(asked, kept, batch_size=32, max_new_tokens=NEW_TOKENS, answerer=answerer)
    return replies


@torch.no_grad()
def untouched(case: Any, prompt: str) -> list[int]:
    image = case.images[1]
    ids = stock_ids(case, prompt, image, range(len(flat_features(case, 1))))
    inputs = {**case.pixel_inputs(image), **token_types(case, ids)}
    output = case.stock.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, **inputs
    )
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", TINY)
def test_special_tokens_in_a_prompt_never_cost_more_than_that_prompt(case, name):
    case = case(name)
    odd = [f"w3 {token} w4" for token in SPECIAL if not token.startswith("<row") or token == "<row_1_col_1>"]
    rows = posed(case, [*HARMLESS, *odd])
    assert [row.finish_reason for row in rows[: len(HARMLESS)]] == ["length"] * len(HARMLESS)
    for row, prompt in zip(rows, [*HARMLESS, *odd], strict=True):
        if row.finish_reason == "refused":
            assert row.text is None
            assert row.message
        elif prompt.split()[1] not in ("<image>", case.tiny.placeholder):  # those say where the image goes
            assert row.token_ids == untouched(case, prompt), prompt
            assert row.message is None
    refused = {prompt.split()[1] for prompt, row in zip(odd, rows[len(HARMLESS) :], strict=True) if row.message}
    assert refused == REFUSED.get(name, set())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "smolvlm"])
def test_a_video_is_refused_whatever_the_config_says_of_it(case, name, tmp_path):
    """The model's own processor goes by the text: it asks for a video wherever the text has its placeholder."""
    case = case(name)
    folder = Path(shutil.copytree(case.folder, tmp_path / name))
    config = json.loads((folder / "config.json").read_text())
    for key in ("video_token_id", "video_token_index"):
        if key in config:
            config[key] = 7  # of another word
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint, family = open_checkpoint(str(folder))
    answerer = family.answerer(checkpoint, torch.device("cpu"), torch.float32)
    (video,) = REFUSED[name]
    rows = posed(case, ["w1", f"w3 {video} w4", "w2"], answerer)
    assert [row.finish_reason for row in rows] == ["length", "refused", "length"]
    assert rows[1].message == (
        f"the prompt's own text holds {video!r}, which stands for a video; a prompt is about one image"
    )


@pytest.mark.parametrize("name", TINY)
def test_a_nul_is_no_image(case, name):
    case = case(name)
    prompts = ["w3 \0 w4", "\0", "w3 \0 \0 w4", "w3 <image> w4 \0"]
    rows = posed(case, prompts)
    assert {row.finish_reason for row in rows} == {"length"}
    for row, prompt in list(zip(rows, prompts, strict=True))[:3]:
        assert row.token_ids == untouched(case, prompt)
    assert rows[3].token_ids != rows[0].token_ids


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "paligemma", "smolvlm"])
def test_text_the_tokenizer_cannot_take_is_refused_alone(case, name):
    case = case(name)
    rows = posed(case, [*HARMLESS, "w3 \ud800 w4"])
    assert [row.finish_reason for row in rows] == ["length", "length", "refused"]
    assert rows[2].message.startswith("the tokenizer can't take this prompt (")


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3"])
def test_a_prompt_the_template_trips_over_is_refused_alone(case, name, monkeypatch):
    case = case(name)
    answerer = case.answerer()
    odd = (
        "{% set words = messages[0].content[-1].text %}{% if 'boom' in words %}{{ raise_exception('no boom here') }}"
        "{% elif 'sum' in words %}{{ words + 1 }}{% elif 'zero' in words %}{{ 1 // 0 }}{% endif %}"
    )
    monkeypatch.setattr(answerer.tokenizer, "chat_template", odd + answerer.tokenizer.chat_template)
    rows = posed(case, ["w1", "boom", "the sum", "zero", "w2"], answerer)
    assert [row.finish_reason for row in rows] == ["length", "refused", "refused", "refused", "length"]
    assert rows[1].message == "the chat template can't pose this prompt (no boom here)"


@pytest.mark.parametrize("name", TINY)
def test_why_several_images_are_refused_is_told(case, name):
    (row,) = posed(case(name), ["<image> and <image>"])
    assert row.finish_reason == "refused"
    assert "one prompt takes one image" in row.message
