"""A checkpoint's own generation settings: each answer is the untouched model's for that prompt alone, or a refusal."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.families.base import Checkpoint
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.generation_settings import check_generation
from tests.families.models import TINY, VOCABULARY
from tests.families.test_parity import flat_features, stock_ids, token_types

pytestmark = pytest.mark.long

NEW_TOKENS = 12
PROMPTS = ["what is this", "how many red w3 in the picture of this", "w9", "w5 w6 w7 w5 w6 w7 w5 w6"]

# Every setting with a value that matters, the families it is tried on, and whether it is refused.
OBEYED: dict[str, Any] = {
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.7,
    "encoder_no_repeat_ngram_size": 2,
    "bad_words_ids": [[100], [21, 2], [0, 37]],
    "sequence_bias": [[[100], -9.0], [[0, 37], 30.0]],
    "min_length": 30,
    "min_new_tokens": 5,
    "forced_bos_token_id": VOCABULARY["w7"],
    "forced_eos_token_id": VOCABULARY["w7"],
    "exponential_decay_length_penalty": [2, 1.9],
    "suppress_tokens": list(range(30, 60)),
    "begin_suppress_tokens": list(range(30, 80)),
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "watermarking_config": {"bias": 8.0},
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 3,
    "top_p": 0.5,
    "top_h": 0.4,
    "min_p": 0.2,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.01,
    "num_beams": 3,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "early_stopping": True,
    "length_penalty": 2.0,
    "low_memory": True,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {},
    "max_cache_len": 64,
    "disable_compile": True,
    "continuous_batching_config": {},
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "max_length": 5,
    "max_new_tokens": 2,
    "max_matching_ngram_size": 2,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.1,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "guidance_scale": 1.0,
    "bos_token_id": 5,
    "decoder_start_token_id": 5,
    "transformers_version": "4.0.0",
    "chat_format": "of a remote code",
}
REFUSED: dict[str, Any] = {
    "max_time": 0.5,
    "stop_strings": ["w5"],
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "assistant_ensemble_weight": 0.5,
    "is_assistant": True,
    "use_mtp": True,
    "speculation_type": "mtp",
    "guidance_scale": 1.5,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "constraints": ["w5"],
    "force_words_ids": [[5]],
    "num_return_sequences": 2,
    "compile_config": {},
    "token_healing": True,
    "prefill_chunk_size": 8,
    "cache_implementation": "quantized",
}
TOKENS: dict[str, dict[str, Any]] = {
    "one end": {"eos_token_id": 5, "pad_token_id": 0},
    "no pad": {"eos_token_id": VOCABULARY["w5"], "pad_token_id": None},
    "pad is end": {"eos_token_id": 100, "pad_token_id": 100, "repetition_penalty": 3.0},
    "neither": {"eos_token_id": None, "pad_token_id": None},
    "several ends": {"eos_token_id": list(range(50, 80)), "pad_token_id": None},
    "pad is no token": {"eos_token_id": list(range(50, 70)), "pad_token_id": -1},
    "pad is the image": {"eos_token_id": list(range(50, 70)), "pad_token_id": VOCABULARY["<image>"]},
}
CHANGE_ANSWERS = {
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "min_length", "min_new_tokens"),
    *("suppress_tokens", "begin_suppress_tokens", "watermarking_config", "exponential_decay_length_penalty"),
}
MANY_ENDS = list(range(60, 90))  # so that answers end, at different lengths


@pytest.fixture
def with_settings(case: Callable[[str], Any], tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """A family's case and a copy of its checkpoint with other generation settings."""

    def make(name: str, **settings: Any) -> tuple[Any, Path]:
        folder = Path(shutil.copytree(case(name).folder, tmp_path / name))
        file = folder / "generation_config.json"
        merged = {**json.loads(file.read_text()), **settings}
        file.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
        return case(name), folder

    return make


@pytest.fixture(scope="module")
def plain(case: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """The untouched answers with no setting but the ends."""
    folder = Path(shutil.copytree(case("llava").folder, tmp_path_factory.mktemp("plain") / "llava"))
    change(folder, "generation_config.json", lambda data: data.update(eos_token_id=MANY_ENDS))
    return untouched(case("llava"), folder, in_turn(PROMPTS))


def change(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))


def in_turn(prompts: list[str]) -> list[tuple[int, str]]:
    """Each prompt about one of two images, given by their number."""
    return [((3, 1)[number % 2], prompt) for number, prompt in enumerate(prompts)]


def answers(case: Any, folder: Path, asked: list[tuple[int, str]]) -> list[list[int]]:
    """Answers to prompts about images, in one batch."""
    checkpoint, family = open_checkpoint(str(folder))
    check_generation(checkpoint)
    answerer = family.answerer(checkpoint, torch.device("cpu"), torch.float32)
    kept = case.kept(Budget("all"))
    replies = case.replies(asked, kept, batch_size=32, max_new_tokens=NEW_TOKENS, answerer=answerer)
    return [list(reply.token_ids) for reply in replies]


@torch.no_grad()
def untouched(case: Any, folder: Path, asked: list[tuple[int, str]], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """What `generate` of the stock model gives for each prompt about an image alone, from a fresh model each time."""
    expected = []
    loaded = case.tiny.stock.from_pretrained(folder).eval()
    for image, prompt in asked:
        stock = copy.deepcopy(loaded)
        ids = stock_ids(case, prompt, case.images[image], range(len(flat_features(case, image))))
        inputs = {**case.pixel_inputs(case.images[image]), **token_types(case, ids)}
        output = stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=new_tokens,
            **inputs,
        )
        output = getattr(output, "sequences", output)
        tokens = output[0, ids.shape[1] :].tolist()
        end = stock.generation_config.eos_token_id
        ends = end if isinstance(end, list) else [end]
        cut = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
        expected.append(tokens[:cut])
    return expected


@pytest.mark.parametrize("setting", OBEYED)
def test_a_setting_is_obeyed(with_settings, plain, setting):
    case, folder = with_settings("llava", **{"eos_token_id": MANY_ENDS, setting: OBEYED[setting]})
    expected = untouched(case, folder, in_turn(PROMPTS))
    assert answers(case, folder, in_turn(PROMPTS)) == expected
    if setting in CHANGE_ANSWERS:
        assert expected != plain, "a value that changes nothing proves nothing"


@pytest.mark.parametrize("name", [name for name in TINY if name != "llava"])
@pytest.mark.parametrize("settings", [{"use_cache": False}, {"repetition_penalty": 1.7, "no_repeat_ngram_size": 3}])
def test_every_family_obeys(with_settings, name, settings):
    case, folder = with_settings(name, eos_token_id=MANY_ENDS[:8], **settings)
    assert answers(case, folder, in_turn(PROMPTS[:2])) == untouched(case, folder, in_turn(PROMPTS[:2]))


@pytest.mark.parametrize("tokens", TOKENS)
def test_ends_and_padding_of_every_kind(with_settings, tokens):
    case, folder = with_settings("llava", **TOKENS[tokens])
    assert answers(case, folder, in_turn(PROMPTS)) == untouched(case, folder, in_turn(PROMPTS))


@torch.no_grad()
def test_the_text_is_what_the_untouched_model_decodes(with_settings):
    """The ends are words here, no special tokens, and stay in the text."""
    case, folder = with_settings("llava", eos_token_id=MANY_ENDS)
    checkpoint, family = open_checkpoint(str(folder))
    answerer = family.answerer(checkpoint, torch.device("cpu"), torch.float32)
    asked = [(1, prompt) for prompt in PROMPTS]
    replies = case.replies(asked, case.kept(Budget("all")), batch_size=32, max_new_tokens=NEW_TOKENS, answerer=answerer)
    stock = case.tiny.stock.from_pretrained(folder).eval()
    for reply, prompt in zip(replies, PROMPTS, strict=True):
        ids = stock_ids(case, prompt, case.images[1], range(len(flat_features(case, 1))))
        output = stock.generate(
            input_ids=ids, do_sample=False, max_new_tokens=NEW_TOKENS, **case.pixel_inputs(case.images[1])
        )
        made = output[0, ids.shape[1] :]
        assert reply.text == answerer.tokenizer.decode(made, skip_special_tokens=True)
        assert (reply.finish_reason == "stop") == (int(made[-1]) in MANY_ENDS)
    assert "stop" in {reply.finish_reason for reply in replies}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(with_settings, setting):
    _, folder = with_settings("llava", **{setting: REFUSED[setting]})
    checkpoint, _ = open_checkpoint(str(folder))
    with pytest.raises(UserError, match=rf"generation.*{setting}"):
        check_generation(checkpoint)


def test_every_setting_of_the_installed_transformers_is_tried_here():
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known <= {*OBEYED, *REFUSED, "eos_token_id", "pad_token_id"}


def test_a_refusal_says_what_and_where(with_settings):
    _, folder = with_settings("llava", max_time=0.5, num_beams=2, num_return_sequences=2)
    message = r"ask for max_time = 0\.5, num_return_sequences = 2, .*; take it out of generation_config\.json"
    with pytest.raises(UserError, match=message):
        check_generation(open_checkpoint(str(folder))[0])


def test_a_penalty_without_an_end_is_refused(with_settings):
    _, folder = with_settings("llava", exponential_decay_length_penalty=[2, 1.9])
    with pytest.raises(UserError, match="exponential_decay_length_penalty"):
        check_generation(open_checkpoint(str(folder))[0])


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damaged_settings_are_not_taken_for_none(with_settings, content):
    _, folder = with_settings("llava")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config\.json can't be used"):
        check_generation(open_checkpoint(str(folder))[0])


@pytest.mark.parametrize("where", ["config", "text_config"])
@pytest.mark.parametrize("file_too", [True, False])
def test_settings_of_the_config_are_obeyed(with_settings, where, file_too):
    case, folder = with_settings("llava")
    if not file_too:
        (folder / "generation_config.json").unlink()
    settings = {"use_cache": False, "eos_token_id": MANY_ENDS}
    change(folder, "config.json", lambda data: (data if where == "config" else data["text_config"]).update(settings))
    assert answers(case, folder, in_turn(PROMPTS)) == untouched(case, folder, in_turn(PROMPTS))


def test_refused_settings_of_the_config_name_the_config(with_settings):
    _, folder = with_settings("llava")
    (folder / "generation_config.json").unlink()
    change(folder, "config.json", lambda data: data.update(token_healing=True))
    checkpoint, _ = open_checkpoint(str(folder))
    with pytest.raises(UserError, match=r"token_healing = True, .* take it out of config\.json"):
        check_generation(checkpoint)


ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "longrope": {
        **{"rope_type": "longrope", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32},
        **{"short_factor": [1.0] * 4, "long_factor": [3.0, 2.0, 1.5, 9.0]},
    },
}


@pytest.mark.parametrize("name", ["llava", "internvl"])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("limit", [26, 32, 1000])
def test_texts_beyond_the_limit_of_the_rotation(with_settings, name, rope, limit):
    def lengthen(data: dict[str, Any]) -> None:
        parameters = {**ROPES[rope], **({"original_max_position_embeddings": limit} if rope == "longrope" else {})}
        data["text_config"].update(rope_parameters=parameters, max_position_embeddings=limit)

    case, folder = with_settings(name)
    change(folder, "config.json", lengthen)
    prompts = [*PROMPTS, "w1 w2 w3 " * 8, "w4"]
    assert answers(case, folder, in_turn(prompts)) == untouched(case, folder, in_turn(prompts))


def test_the_checkpoint_of_another_name_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--model nowhere: config\.json can't be used"):
        check_generation(Checkpoint(tmp_path, "nowhere", None))


def test_an_end_that_is_no_tokens_id_is_refused(with_settings):
    _, folder = with_settings("llava", eos_token_id="2")
    with pytest.raises(UserError, match="eos_token_id = '2'"):
        check_generation(open_checkpoint(str(folder))[0])
