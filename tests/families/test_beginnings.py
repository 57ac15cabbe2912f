"""One pass over an image for all its prompts: only where it changes nothing."""

import pytest

from pipeline.budget import Budget
from pipeline.families.loading import attends_causally
from tests.families.models import TINY

PROMPTS = ["what is this", "how many red w3 in the picture", "w9 w1 <image> w2", "w9 w1 <image>"]


@pytest.mark.parametrize("name", TINY)
def test_prompts_of_one_image_are_answered_as_if_alone(case, name):
    case = case(name)
    kept = case.kept(Budget("count", 5))
    asked = [(1, prompt) for prompt in PROMPTS * 2]
    together, alone = (case.replies(asked, kept, batch_size=size, max_new_tokens=12) for size in (len(asked), 1))
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
    assert case.answerer().shares_beginnings == (name not in ("gemma3", "paligemma"))


def test_a_sliding_window_is_seen_in_the_config():
    config = TINY["llava_onevision"].config()
    assert attends_causally(config)
    config.text_config.layer_types = ["full_attention", "sliding_attention"]
    assert not attends_causally(config)
    config = TINY["llava"].config()
    config.text_config.sliding_window = 4096
    assert not attends_causally(config)
