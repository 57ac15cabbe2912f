"""Answers from stored features against the stock models themselves, token for token."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.budget import Budget
from pipeline.families import family_of
from pipeline.families.base import KeptImage
from tests.families.models import MORE, TINY, tokenizer

pytestmark = pytest.mark.long

NEW_TOKENS = 16
PROMPTS = ["what is this", "how many red w3 in the picture", "w9", "what colour <image> of w1 w2 w3", "w5 w6 w7 w8"]


def stock_ids(case: Any, prompt: str, image: Any, places: Sequence[int]) -> Tensor:
    """The prompt as the model's own processor writes it, for the image's tokens at these places of the sequence."""
    tiny, words = case.tiny, tokenizer(case.tiny.image_text)
    block = image_block(case, image, places)
    if not tiny.has_template:  # PaliGemma
        text = prompt if "<image>" in prompt else "<image>" + prompt
        text = text.replace("<image>", block + "<s>") + "\n"
        return torch.tensor([words(text, add_special_tokens=False)["input_ids"]])
    if "<image>" in prompt:
        content = [{"type": "text", "text": prompt.replace("<image>", tiny.image_text)}]
    else:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = words.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    return torch.tensor([words(text.replace(tiny.placeholder, block))["input_ids"]])


def image_block(case: Any, image: Any, places: Sequence[int]) -> str:
    tiny = case.tiny
    token = (tiny.token or tiny.placeholder) + " "
    if tiny.family not in ("idefics3", "smolvlm"):
        return tiny.wrap.format(token * len(places))
    inputs = tiny.processor()(image, return_row_col_info=True, return_tensors="np")
    rows, cols = int(np.ravel(inputs["rows"])[0]), int(np.ravel(inputs["cols"])[0])
    per_tile = 4
    count = [sum(place // per_tile == tile for place in places) for tile in range(rows * cols + 1)]
    text = ""
    for row in range(rows):
        for col in range(cols):
            text += f"<fake_token_around_image><row_{row + 1}_col_{col + 1}>" + token * count[row * cols + col]
        text += "\n"
    text += "\n" if rows else ""
    return text + "<fake_token_around_image><global-img>" + token * count[-1] + "<fake_token_around_image>"


def flat_features(case: Any, number: int) -> Tensor:
    """The stock model's features of an image as one sequence."""
    output = case.stock_features(number).pooler_output
    return torch.cat(list(output))


def prompts_of(case: Any) -> list[dict[str, Any]]:
    """Every image with two prompts."""
    count = len(case.images)
    pairs = [(n % count, PROMPTS[(n + n // count) % len(PROMPTS)]) for n in range(2 * count)]
    return [{"image_id": f"{image:064x}", "image": image, "prompt": prompt} for image, prompt in pairs]


def answers(case: Any, kept: dict[str, KeptImage], positions: str | None = None) -> list[list[int]]:
    asked = [(prompt["image"], prompt["prompt"]) for prompt in prompts_of(case)]
    answerer = case.answerer(positions)
    replies = case.replies(asked, kept, batch_size=4, max_new_tokens=NEW_TOKENS, answerer=answerer)
    return [list(reply.token_ids) for reply in replies]


@lru_cache(maxsize=1 << 10)
def answers_to_all(case: Any, positions: str | None = None) -> list[list[int]]:
    """Answers with all tokens, which several tests compare with."""
    return answers(case, case.kept(Budget("all")), positions)


@pytest.mark.parametrize("name", [*TINY, *MORE])
def test_with_all_tokens_answers_are_the_stock_models_own(case, name):
    case = case(name)
    got = answers_to_all(case)
    expected = []
    for prompt in prompts_of(case):
        image = case.images[prompt["image"]]
        ids = stock_ids(case, prompt["prompt"], image, range(len(flat_features(case, prompt["image"]))))
        inputs = {**case.pixel_inputs(image), **token_types(case, ids)}
        with torch.no_grad():
            output = case.stock.generate(input_ids=ids, do_sample=False, max_new_tokens=NEW_TOKENS, **inputs)
        expected.append(output[0, ids.shape[1] :].tolist())
    assert got == expected
    assert len({tuple(tokens) for tokens in expected}) > len(case.images)  # image and prompt both matter


@pytest.mark.parametrize("name", [*TINY, *MORE])
@pytest.mark.parametrize("budget", [Budget("count", 3), Budget("ratio", 0.4)], ids=["count", "ratio"])
def test_pruned_answers_are_those_of_pruning_by_hand(case, name, budget):
    case = case(name)
    kept = case.kept(budget)
    got = answers(case, kept)
    for prompt, tokens in list(zip(prompts_of(case), got, strict=True))[::2]:
        assert tokens == by_hand(case, prompt, kept[prompt["image_id"]], original=False)
    assert got != answers_to_all(case)


@pytest.mark.parametrize("name", [*(name for name in TINY if "original" in family_of(name).positions), *MORE])
def test_original_positions_are_those_before_pruning(case, name):
    case = case(name)
    kept = case.kept(Budget("count", 3))
    got = answers(case, kept, "original")
    for prompt, tokens in list(zip(prompts_of(case), got, strict=True))[::3]:
        assert tokens == by_hand(case, prompt, kept[prompt["image_id"]], original=True)
    assert got != answers(case, kept, "compact")
    assert answers_to_all(case, "original") == answers_to_all(case, "compact")


def token_types(case: Any, ids: Tensor) -> dict[str, Tensor]:
    """What else the model's own processor gives along with the ids."""
    is_image = (ids == case.tiny.image_token_id).int()
    if case.tiny.family.startswith("qwen"):
        return {"mm_token_type_ids": is_image}
    return {"gemma3": {"token_type_ids": is_image}, "paligemma": {"token_type_ids": 0 * is_image}}.get(
        case.tiny.family, {}
    )


@torch.no_grad()
def by_hand(case: Any, prompt: dict[str, Any], kept: KeptImage, *, original: bool) -> list[int]:
    """Prune between projector and language model of the stock model, count positions, decode greedily, no cache."""
    stock, image = case.stock, case.images[prompt["image"]]
    sequence = flat_features(case, prompt["image"])
    newline = getattr(stock.model, "image_newline", None)
    is_newline = torch.zeros(len(sequence), dtype=torch.bool)
    if newline is not None:
        is_newline = (sequence == newline).all(-1)
    visual = (~is_newline).nonzero().squeeze(1)
    wanted = set(visual[sorted(kept.selection.ranking[: len(kept.indices_K)])].tolist())
    places = [place for place in range(len(sequence)) if is_newline[place] or place in wanted]
    ids = stock_ids(case, prompt["prompt"], image, places)
    is_image = ids[0] == case.tiny.image_token_id
    assert int(is_image.sum()) == len(places)
    embeddings = stock.get_input_embeddings()(ids[0])
    embeddings[is_image] = sequence[places]
    positions = positions_by_hand(case, image, is_image, places, len(sequence), original=original)
    types = {name: value for name, value in token_types(case, ids).items() if name == "token_type_ids"}
    deepstack = getattr(case.stock_features(prompt["image"]), "deepstack_features", None)
    made: list[int] = []
    for _ in range(NEW_TOKENS):
        inputs = {
            "inputs_embeds": embeddings[None],
            "position_ids": positions[:, None] if len(positions) == 3 else positions,
            "attention_mask": torch.ones(1, len(embeddings), dtype=torch.int64),
            "use_cache": False,
        }
        if deepstack:
            mask = torch.zeros(1, len(embeddings), dtype=torch.bool)
            mask[0, : len(is_image)] = is_image
            levels = [torch.cat(list(level))[places] for level in deepstack]
            output = stock.model.language_model(visual_pos_masks=mask, deepstack_visual_embeds=levels, **inputs)
        else:
            output = stock.model(**inputs, **types)
        made.append(int(stock.lm_head(output.last_hidden_state[0, -1]).argmax()))
        embeddings = torch.cat([embeddings, stock.get_input_embeddings()(torch.tensor(made[-1:]))])
        positions = torch.cat([positions, positions.amax(0, keepdim=True)[:, -1:].expand(len(positions), 1) + 1], 1)
        suffix = torch.tensor([[int(case.tiny.family == "paligemma")]])
        types = {name: torch.cat([value, suffix.to(value)], 1) for name, value in types.items()}
    return made


def positions_by_hand(
    case: Any, image: Any, is_image: Tensor, places: list[int], length: int, *, original: bool
) -> Tensor:
    """(1, T), or (3, T) on the image's grid."""
    start = int(is_image.nonzero()[0])
    first = 1 if case.tiny.family == "paligemma" else 0
    inputs = case.pixel_inputs(image)
    if "image_grid_thw" in inputs:
        rows, cols = (inputs["image_grid_thw"][0, 1:] // 2).tolist()
        of_image = [(start, start + place // cols, start + place % cols) for place in places]
        behind = start + max(rows, cols)
    elif original:
        of_image = [(start + place,) for place in places]
        behind = start + length
    else:
        return torch.arange(len(is_image))[None] + first
    axes = len(of_image[0])
    after = [(behind + number,) * axes for number in range(len(is_image) - start - len(places))]
    return torch.tensor([(number,) * axes for number in range(start)] + of_image + after).T + first
