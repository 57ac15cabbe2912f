"""Answers from stored features against the stock models themselves, token for token."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.budget import Budget
from pipeline.families.base import KeptImage
from pipeline.generate import answer_prompts
from tests.families.models import TINY, VOCABULARY, tokenizer

NEW_TOKENS = 32
PROMPTS = ["what is this", "how many red w3 in the picture", "w9", "what colour <image> of w1 w2 w3", "w5 w6 w7 w8"]


def stock_ids(case: Any, prompt: str, count: int) -> Tensor:
    """The prompt as the model's own processor writes it: chat template, then an image token a visual token."""
    tiny, words = case.tiny, tokenizer(case.tiny.image_text)
    if "<image>" in prompt:
        content = [{"type": "text", "text": prompt.replace("<image>", tiny.image_text)}]
    else:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = words.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    text = text.replace(tiny.placeholder, tiny.wrap.format(" ".join([tiny.placeholder] * count)))
    return torch.tensor([words(text)["input_ids"]])


def flat_features(case: Any, image: Any) -> Tensor:
    """The stock model's image features as one sequence."""
    output = case.stock_features(image).pooler_output
    return torch.cat(list(output))


def prompts_of(case: Any) -> list[dict[str, Any]]:
    """Every image with two prompts."""
    count = len(case.images)
    pairs = [(n % count, PROMPTS[(n + n // count) % len(PROMPTS)]) for n in range(2 * count)]
    fixed = {"references": [], "type": None, "shard": 0}
    return [
        {"prompt_id": str(n), "image_id": f"{image:064x}", "image": image, "prompt": prompt, **fixed}
        for n, (image, prompt) in enumerate(pairs)
    ]


def answers(case: Any, kept: dict[str, KeptImage], positions: str | None = None) -> list[list[int]]:
    rows = answer_prompts(case.answerer(positions), prompts_of(case), kept, batch_size=4, max_new_tokens=NEW_TOKENS)
    return [row["answer_tokens"] for row in rows]


@pytest.mark.parametrize("name", TINY)
def test_with_all_tokens_answers_are_the_stock_models_own(case, name):
    case = case(name)
    got = answers(case, case.kept(Budget("all")))
    expected = []
    for prompt in prompts_of(case):
        image = case.images[prompt["image"]]
        ids = stock_ids(case, prompt["prompt"], len(flat_features(case, image)))
        inputs = case.pixel_inputs(image)
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == VOCABULARY[case.tiny.placeholder]).int()
        with torch.no_grad():
            output = case.stock.generate(input_ids=ids, do_sample=False, max_new_tokens=NEW_TOKENS, **inputs)
        expected.append(output[0, ids.shape[1] :].tolist())
    assert got == expected
    assert len({tuple(tokens) for tokens in expected}) > len(case.images)  # image and prompt both matter


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("budget", [Budget("count", 7), Budget("ratio", 0.4)], ids=["count", "ratio"])
def test_pruned_answers_are_those_of_pruning_by_hand(case, name, budget):
    case = case(name)
    kept = case.kept(budget)
    got = answers(case, kept)
    for prompt, tokens in list(zip(prompts_of(case), got, strict=True))[::2]:
        assert tokens == by_hand(case, prompt, kept[prompt["image_id"]], original=False)
    assert got != answers(case, case.kept(Budget("all")))


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if "vision_start" not in tiny.image_text])
def test_original_positions_are_those_before_pruning(case, name):
    case = case(name)
    kept = case.kept(Budget("count", 7))
    got = answers(case, kept, "original")
    for prompt, tokens in list(zip(prompts_of(case), got, strict=True))[::3]:
        assert tokens == by_hand(case, prompt, kept[prompt["image_id"]], original=True)
    assert got != answers(case, kept, "compact")
    assert answers(case, case.kept(Budget("all")), "original") == answers(case, case.kept(Budget("all")), "compact")


@torch.no_grad()
def by_hand(case: Any, prompt: dict[str, Any], kept: KeptImage, *, original: bool) -> list[int]:
    """Prune between projector and language model of the stock model, count positions, decode greedily, no cache."""
    stock, image = case.stock, case.images[prompt["image"]]
    sequence = flat_features(case, image)
    newline = getattr(stock.model, "image_newline", None)
    is_newline = torch.zeros(len(sequence), dtype=torch.bool)
    if newline is not None:
        is_newline = (sequence == newline).all(-1)
    visual = (~is_newline).nonzero().squeeze(1)
    wanted = set(visual[sorted(kept.selection["ranking"][: len(kept.indices_K)])].tolist())
    places = [place for place in range(len(sequence)) if is_newline[place] or place in wanted]
    ids = stock_ids(case, prompt["prompt"], len(places))[0]
    is_image = ids == VOCABULARY[case.tiny.placeholder]
    start, end = int(is_image.nonzero()[0]), int(is_image.nonzero()[-1]) + 1
    extra: dict[str, Any] = {}
    deepstack = getattr(case.stock_features(image), "deepstack_features", None)
    embeddings = stock.get_input_embeddings()(ids)
    embeddings[start:end] = sequence[places]
    inputs = case.pixel_inputs(image)
    if "image_grid_thw" in inputs:
        rows, cols = (inputs["image_grid_thw"][0, 1:] // 2).tolist()
        grid = [(0, place // cols, place % cols) for place in places]
        position = [(n, n, n) for n in range(start)] + [(start + t, start + r, start + c) for t, r, c in grid]
        following = start + max(rows, cols)
    else:
        position = list(range(start)) + ([start + place for place in places] if original else list(range(start, end)))
        following = start + len(sequence) if original else end
    for number in range(len(ids) - end):
        position.append(following + number if "image_grid_thw" not in inputs else (following + number,) * 3)
    made: list[int] = []
    for _ in range(NEW_TOKENS):
        ids_of = (
            torch.tensor(position).T.reshape(-1, 1, len(position))
            if deepstack or isinstance(position[0], tuple)
            else torch.tensor([position])
        )
        if deepstack:
            mask = torch.zeros(1, len(embeddings), dtype=torch.bool)
            mask[0, start:end] = True
            levels = [torch.cat(list(level))[places] for level in deepstack]
            extra = {"visual_pos_masks": mask, "deepstack_visual_embeds": levels}
        hidden = stock.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=ids_of,
            attention_mask=torch.ones(1, len(embeddings), dtype=torch.int64),
            use_cache=False,
            **extra,
        ).last_hidden_state
        made.append(int(stock.lm_head(hidden[0, -1]).argmax()))
        embeddings = torch.cat([embeddings, stock.get_input_embeddings()(torch.tensor(made[-1:]))])
        last = position[-1]
        position.append(last + 1 if isinstance(last, int) else (last[0] + 1,) * 3)
    return made
