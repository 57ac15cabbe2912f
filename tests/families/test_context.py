"""Prompts as long as the model was made for are posed; longer ones are refused alone."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from pipeline.budget import Budget
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.loading import context_length
from schemas.answers import FinishReason
from tests.families.test_generation_settings import untouched

NEW_TOKENS = 6
WORDS = "w1 w2 w3 w4 w5 w6 w7 w8 "


def of_context(case, tmp_path: Path, tokens: int):
    """The answering side of a LLaVA whose config names this context."""
    folder = Path(shutil.copytree(case("llava").folder, tmp_path / "llava"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = tokens
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint, family = open_checkpoint(str(folder))
    return folder, family.answerer(checkpoint, torch.device("cpu"), torch.float32)


def test_a_prompt_up_to_the_context_is_answered_as_by_the_untouched_model_and_a_longer_one_refused(case, tmp_path):
    """The untouched model goes on beyond its context while it answers; so does the answer here."""
    llava = case("llava")
    full, short, long = WORDS * 5, "what is this", WORDS * 5 + "w9"
    kept = llava.kept(Budget("all"))
    length = len(llava.answerer().token_ids(full, kept[f"{1:064x}"]))
    folder, answerer = of_context(case, tmp_path, length)
    asked = [(1, full), (1, short), (1, long), (3, short)]
    replies = llava.replies(asked, kept, batch_size=4, max_new_tokens=NEW_TOKENS, answerer=answerer)
    assert [reply.finish_reason is FinishReason.REFUSED for reply in replies] == [False, False, True, False]
    assert replies[2].message == (
        f"the prompt has {length + 1} tokens with its image, the model takes {length} (max_position_embeddings); "
        "shorten it, or answer with fewer --tokens"
    )
    answered = (0, 1, 3)
    expected = untouched(llava, folder, [asked[n] for n in answered], NEW_TOKENS)
    assert [list(replies[n].token_ids) for n in answered] == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 100),
        ({"rope_type": "linear", "factor": 4.0}, 400),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 10}, 100),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50}, 200),
        (
            {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}},
            200,
        ),
        (None, 100),
    ],
)
def test_a_stretched_rotation_stretches_the_context(parameters, expected):
    text = SimpleNamespace(max_position_embeddings=100, rope_parameters=parameters)
    assert context_length(SimpleNamespace(get_text_config=lambda: text)) == expected


def test_configs_name_their_context_where_it_is_looked_for(case, tiny_llava):
    config = AutoConfig.from_pretrained(tiny_llava)
    assert context_length(config) == config.text_config.max_position_embeddings
