"""Text is text: a prompt is answered as the untouched model would answer it, or refused alone with a reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.answer.engine import Reply
from pipeline.budget import Budget
from pipeline.families.base import Turn
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


ROLES = "{% for m in messages %}<|im_start|> {{ {'user': 'w1', 'assistant': 'w2', 'system': 'w3'}[m['role']] }} "
CONVERSATION = (Turn("system", "w4"), Turn("user", "w5"), Turn("assistant", "w6"), Turn("user", "w7 w8"))


@pytest.mark.parametrize("name", [name for name in TINY if name != "paligemma"])
def test_earlier_turns_are_written_by_the_chat_template(case, name, monkeypatch):
    """As the model's own template writes them, the image before the user's first words, or where a turn has it."""
    case = case(name)
    answerer = case.answerer()
    tokenizer = answerer.tokenizer
    _, _, body = tokenizer.chat_template.partition("<|im_start|> user ")
    monkeypatch.setattr(tokenizer, "chat_template", ROLES + body)
    image = case.kept(Budget("all"))[f"{1:064x}"]
    parts = [{"type": "image"}, {"type": "text", "text": "w5"}]
    text = [[{"type": "text", "text": turn.text}] for turn in CONVERSATION]
    stock = [{"role": t.role, "content": c} for t, c in zip(CONVERSATION, [text[0], parts, *text[2:]], strict=True)]
    expected = tokenizer.apply_chat_template(stock, tokenize=False, add_generation_prompt=True)
    words = [word for word in expected.split() if word.startswith("w")]
    assert words == ["w3", "w4", "w1", "w5", "w2", "w6", "w1", "w7", "w8"]
    ids = answerer.token_ids(CONVERSATION, image)
    seen = [word for word in tokenizer.convert_ids_to_tokens(ids) if word.startswith("w")]
    assert seen == words
    first = ids.index(answerer.image_token_id)
    assert tokenizer.convert_ids_to_tokens(ids)[:first].count("w5") == 0, "the image stands before the first words"
    placed = (Turn("user", "w5 <image>"), *CONVERSATION[2:])
    ids = answerer.token_ids(placed, image)
    assert tokenizer.convert_ids_to_tokens(ids)[: ids.index(answerer.image_token_id)].count("w5") == 1
    rows = posed(case, [CONVERSATION, "w1", (Turn("user", "w1"),)], answerer)  # type: ignore[list-item]
    assert [row.finish_reason for row in rows] == ["length"] * 3
    assert rows[1].token_ids == rows[2].token_ids


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_a_conversation_that_can_not_be_written_is_refused_alone(case, name, monkeypatch):
    case = case(name)
    answerer = case.answerer()
    twice = (Turn("user", "<image> w1"), Turn("assistant", "w2"), Turn("user", "<image> w3"))
    theirs = (Turn("user", "w1"), Turn("assistant", "<image>"), Turn("user", "w3"))
    rows = posed(case, [twice, theirs, "w1"], answerer)  # type: ignore[list-item]
    assert [row.finish_reason for row in rows] == ["refused", "refused", "length"]
    assert "one prompt takes one image" in rows[0].message
    assert "a turn of the conversation that is not the user's holds" in rows[1].message
    monkeypatch.setattr(answerer.tokenizer, "chat_template", None)
    (row,) = posed(case, [CONVERSATION], answerer)  # type: ignore[list-item]
    assert row.message == (
        "the prompt has earlier turns, and the checkpoint has no chat template that says how they are written"
    )
