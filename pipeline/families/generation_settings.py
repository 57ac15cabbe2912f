"""What a checkpoint's own generation settings mean for answering.

A setting is harmless in a batch, or it is followed by answering one prompt at a time, or it is refused by name. The
promise is that every answer is the one which `generate` of the untouched model gives, greedily, for that prompt alone.
A setting that a newer Transformers may bring and that is in none of the lists below is refused.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint
from pipeline.families.loading import first_line

# Arguments of every `generate`: greedy, with a cache that grows and can be shared, tokens as one tensor.
FORCED: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "cache_implementation": None,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}
# They concern sampling, beams, assistants, speed or memory; or a limit that `max_new_tokens` overrides.
_WITHOUT_EFFECT = {
    *FORCED,
    *("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "low_memory"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size"),
    *("cache_config", "max_cache_len", "compile_config", "disable_compile", "continuous_batching_config"),
    *("max_length", "max_new_tokens", "transformers_version"),
}
# They look at a row's own logits and at how many tokens were generated, which is the same for all rows of a batch.
_ROW_BY_ROW = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("min_new_tokens", "forced_eos_token_id", "exponential_decay_length_penalty"),
    *("suppress_tokens", "begin_suppress_tokens", "remove_invalid_values", "renormalize_logits"),
}
# They look at the tokens of the prompt or count them, and would take padding for part of it.
_ALONE = {
    *("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "sequence_bias", "min_length", "forced_bos_token_id", "watermarking_config"),
}
_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}
_SAME_AS_NONE = {"guidance_scale": 1, "penalty_alpha": 0}


def check_generation(checkpoint: Checkpoint) -> None:
    """Refuse generation settings that can't be honoured, before any weight is read.

    Raises:
        UserError: naming the setting and the file to change.
    """
    file = _file(checkpoint)
    try:
        if not isinstance(json.loads(file.read_bytes()), dict):
            raise ValueError("it holds no object")
        config = GenerationConfig.from_pretrained(
            checkpoint.path, config_file_name=file.name, _from_model_config=file.name == "config.json"
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--model {checkpoint.name}: {file.name} can't be used ({first_line(error)})") from error
    settings = _settings_in_force(config)
    refused = sorted(settings.keys() - _WITHOUT_EFFECT - _ROW_BY_ROW - _ALONE)
    refused += sorted(name for name in _TOKENS & settings.keys() if not _are_tokens(settings[name]))
    if settings.get("cache_implementation") == "quantized":
        refused.append("cache_implementation")
    if "exponential_decay_length_penalty" in settings and "eos_token_id" not in settings:
        refused.append("exponential_decay_length_penalty")
    if refused:
        named = ", ".join(f"{name} = {settings[name]!r}" for name in refused)
        raise UserError(
            f"--model {checkpoint.name}: its generation settings ask for {named}, which answers here can't follow; "
            f"take it out of {file.name}"
        )


@dataclass(frozen=True, slots=True)
class Followed:
    """The generation settings of a checkpoint that an engine outside of Transformers is told."""

    ends: list[int]  # token ids that end an answer
    repetition_penalty: float = 1.0


def followed(checkpoint: Checkpoint, engine: str) -> Followed:
    """What an engine outside of Transformers must be told, so that it follows the checkpoint's generation settings.

    Raises:
        UserError: there are settings that it does not know; names them and the file to change.
    """
    config = generation_config(checkpoint)
    settings = _settings_in_force(config)
    unknown = sorted(settings.keys() & (_ROW_BY_ROW | _ALONE) - _TOKENS - {"repetition_penalty"})
    if unknown:
        named = ", ".join(f"{name} = {settings[name]!r}" for name in unknown)
        raise UserError(
            f"--model {checkpoint.name}: its generation settings ask for {named}, which --engine {engine} does not "
            f"follow; answer with --engine transformers, or take it out of {_file(checkpoint).name}"
        )
    return Followed(end_tokens(config), float(settings.get("repetition_penalty", 1.0)))


def generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    """The generation settings of the model that is loaded from a checkpoint."""
    if _file(checkpoint).name == "config.json":
        return GenerationConfig.from_model_config(checkpoint.config)
    return GenerationConfig.from_pretrained(checkpoint.path)


def _file(checkpoint: Checkpoint) -> Path:
    """Where a checkpoint's generation settings stand."""
    file = checkpoint.path / "generation_config.json"
    return file if file.exists() else checkpoint.path / "config.json"


def runs_alone(config: GenerationConfig) -> bool:
    """Whether the settings make an answer depend on the tokens or the length of the prompt, padding included."""
    return bool(_settings_in_force(config).keys() & _ALONE)


def end_tokens(config: GenerationConfig) -> list[int]:
    """Token ids that end an answer; empty where nothing but its length does."""
    ends = config.eos_token_id
    return [] if ends is None else [int(end) for end in ends] if isinstance(ends, list) else [int(ends)]


def _are_tokens(value: Any) -> bool:
    """Whether it is a token's id, or a list of some."""
    return all(type(one) is int for one in (value if isinstance(value, list) else [value]))


def _settings_in_force(config: GenerationConfig) -> dict[str, Any]:
    """Settings that Transformers knows and that are not at their default; it ignores all others."""
    known = {name: value for name, value in vars(GenerationConfig()).items() if not name.startswith("_")}
    defaults = {**known, **_SAME_AS_NONE, **GenerationConfig._get_default_generation_params()}
    return {
        name: value
        for name in known
        if (value := getattr(config, name, None)) is not None and value is not False and value != defaults[name]
    }
