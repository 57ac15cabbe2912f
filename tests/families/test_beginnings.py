"""One pass over an image for all its prompts: only where it changes nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlavaConfig

from pipeline.budget import Budget
from tests.families.conftest import SIZES, Case, picture
from tests.families.models import CLIP, TEXT, TINY, VOCABULARY, Tiny, build
from tests.families.test_parity import flat_features, stock_ids

PROMPTS = ["what is this", "how many red w3 in the picture", "w9 w1 <image> w2", "w9 w1 <image>"]


@pytest.mark.parametrize("name", TINY)
def test_prompts_of_one_image_are_answered_as_if_alone(case, name):
    case = case(name)
    kept = case.kept(Budget("count", 5))
    asked = [(1, prompt) for prompt in PROMPTS * 2]
    together, alone = (case.replies(asked, kept, batch_size=size, max_new_tokens=12) for size in (len(asked), 1))
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
    assert case.answerer().shares_beginnings == (name not in ("gemma3", "paligemma"))


def llava_over(text: dict[str, Any]) -> Tiny:
    """LLaVA over another language model."""
    config = LlavaConfig(vision_config=CLIP, text_config={**TEXT, **text}, image_token_index=VOCABULARY["<image>"])
    return replace(TINY["llava"], config=lambda: config)


MIXED = ["full_attention", "sliding_attention"]
CHUNKED = {
    **{"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 16, "head_dim": 8},
    **{"intermediate_size_mlp": 48, "num_local_experts": 2},
}
LINEAR = {
    **{"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "num_experts": 2},
    **{"num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
# Language model -> whether prompts of one image share a pass, and whether prompts of different length run together.
TEXTS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "full": ({"model_type": "qwen2"}, True, True),
    "sliding": ({"model_type": "mistral", "sliding_window": 9}, False, True),
    "mixed": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "layer_types": MIXED},
        False,
        True,
    ),
    "chunked": ({"model_type": "llama4_text", **CHUNKED}, False, False),
    "convolution": ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, False, False),
    "linear": ({"model_type": "qwen3_next", **LINEAR}, False, False),
}


@pytest.mark.parametrize("text", TEXTS)
def test_language_models_of_every_kind_answer_as_alone(tmp_path, text):
    """Windows, chunks and states count padding: what would change an answer is not shared, or runs alone."""
    config, shares, takes = TEXTS[text]
    tiny = llava_over(config)
    case = Case(tiny, tmp_path, build(tiny, tmp_path), [picture(seed, size) for seed, size in enumerate(SIZES)])
    assert (case.answerer().shares_beginnings, case.answerer().takes_padding) == (shares, takes)
    prompts = [*PROMPTS[:2], "w5 w6 w7 w8 " * 4]
    replies = case.replies([(1, p) for p in prompts], case.kept(Budget("all")), batch_size=8, max_new_tokens=12)
    expected = []
    for prompt in prompts:
        ids = stock_ids(case, prompt, case.images[1], range(len(flat_features(case, 1))))
        with torch.no_grad():
            output = case.stock.generate(
                input_ids=ids, do_sample=False, max_new_tokens=12, **case.pixel_inputs(case.images[1])
            )
        expected.append(output[0, ids.shape[1] :].tolist())
    assert [list(reply.token_ids) for reply in replies] == expected
