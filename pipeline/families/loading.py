"""Loading a part of a checkpoint, and recording what a module does without changing it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint


@dataclass
class Captured:
    """The input and the output of a module in its last call."""

    input: Tensor
    output: Tensor


@contextmanager
def captured(module: nn.Module) -> Iterator[Captured]:
    """Record what goes into and comes out of `module` while the block runs, in which it must be called once."""
    seen = Captured(torch.empty(0), torch.empty(0))
    calls = []

    def note(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.input, seen.output = inputs[0], output
        calls.append(1)

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
    assert len(calls) == 1, f"{type(module).__name__} was called {len(calls)} times, expected once"


def part_of(stock: type[Any], *without: str) -> type[Any]:
    """A stock Transformers model without some of its submodules, which is the stock model otherwise.

    Transformers builds models on no device before it reads weights, so what is left out never takes memory, and its
    tensors are never read.

    Both sides are parts of the class that users load whole. Which names of tensors a checkpoint may use, Transformers
    decides by that class: the model inside it understands fewer of them.

    Args:
        stock: the model class.
        without: submodules by dotted name.
    """
    left_out = tuple(f"{name}." for name in without)

    class Part(stock):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for name in without:
                owner, _, child = name.rpartition(".")
                delattr(self.get_submodule(owner), child)
            _untie(self, left_out)

        @classmethod
        def is_custom_code(cls) -> bool:
            return False  # stock parameter names: Transformers' renamings of old checkpoints apply

    Part.__name__ = stock.__name__  # some renamings are found by class name
    return Part


def _untie(model: Any, left_out: tuple[str, ...]) -> None:
    """Take ties of weights that begin with one of these names out of what Transformers ties after loading."""
    model.all_tied_weights_keys = {
        target: source
        for target, source in model.all_tied_weights_keys.items()
        if not target.startswith(left_out) and not source.startswith(left_out)
    }


def projector_form(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """A projector built from a config on no device, which has the form of the projector but not its weights."""
    with torch.device("meta"):
        return build(config)


def check_buildable(checkpoint: Checkpoint) -> None:
    """Build the model on no device, without weights, so that a config which describes none is known before any work.

    Raises:
        UserError: Transformers can't build a model of the config.
    """
    try:
        with torch.device("meta"):
            AutoModelForImageTextToText.from_config(checkpoint.config)
    except Exception as error:  # the code of a model raises many unrelated types about values it can't work with
        text = checkpoint.config.get_text_config()
        pad, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", 0)
        if isinstance(pad, int) and not -size <= pad < size:
            raise UserError(
                f"--model {checkpoint.name}: pad_token_id in its config.json is {pad}, which is no token of its "
                f"vocabulary of {size:,}; correct it or set it to null"
            ) from error
        raise UserError(
            f"--model {checkpoint.name}: no model can be built of its config.json "
            f"({type(error).__name__}: {first_line(error)}); fetch the checkpoint again, or correct the file"
        ) from error


def load_part(part: type[Any], checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a part of a checkpoint in evaluation mode, quietly, and refuse it unless it is complete.

    Args:
        part: a `PreTrainedModel` class that holds some modules of the stock architecture under their stock names (see
            `part_of`); tensors of the others are never read.

    Raises:
        UserError: the checkpoint lacks tensors the part needs, or holds them in another shape.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, info = part.from_pretrained(
            checkpoint.path,
            config=checkpoint.config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, TypeError) as error:  # a TypeError: one of its JSON files holds no object
        raise UserError(f"--model {checkpoint.name}: its weights can't be loaded ({first_line(error)})") from error
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise UserError(
            f"--model {checkpoint.name}: the checkpoint lacks {len(names)} tensors it needs, e.g. {names[0]}; "
            "is a safetensors shard missing from the folder?"
        )
    if info["mismatched_keys"]:
        name, found, expected = sorted(info["mismatched_keys"])[0]
        raise UserError(
            f"--model {checkpoint.name}: tensor {name} has shape {tuple(found)} but config.json asks for "
            f"{tuple(expected)}; config and weights do not belong together"
        )
    return model.to(device).eval()


def shares_beginnings(model: Any) -> bool:
    """Whether every token sees exactly the tokens before it, however they are padded.

    It is not so with a sliding window or chunks, which count places, those of padding between a beginning and its
    continuation among them; nor with layers that carry a state on, which padding would be part of.
    """
    return layer_kinds(model) == {"full_attention"}


def takes_padding(model: Any) -> bool:
    """Whether padding before a prompt leaves its answer as it is: layers that attend, to all or through a window."""
    return layer_kinds(model) <= {"full_attention", "sliding_attention"}


def layer_kinds(model: Any) -> set[str]:
    """Kinds of the language model's layers, as Transformers names them; `recurrent` where it has layers with a state.

    A config without a list of kinds has layers of one kind.
    """
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if getattr(text, "sliding_window", None):
        kinds.add("sliding_attention")
    if getattr(text, "attention_chunk_size", None):
        kinds.add("chunked_attention")
    if any(getattr(module, "_is_stateful", False) for module in model.modules()):
        kinds.add("recurrent")
    return kinds or {"full_attention"}


def context_length(config: Any) -> int | None:
    """How many tokens the language model was made for, its rotation of positions stretched as its config says.

    `generate` knows no such limit: with `max_new_tokens` it goes on beyond it, and answers nonsense. None where the
    config names no limit.
    """
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if most is None:
        return None
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters] if "rope_type" in parameters else [one for one in parameters.values() if isinstance(one, dict)]
    stretched = [
        one["factor"] * (one.get("original_max_position_embeddings") or most) for one in kinds if one.get("factor")
    ]
    return int(max(most, *stretched)) if stretched else int(most)


def fixed_rotation_limit(model: Any) -> int | None:
    """The text length from which on the rotation of positions depends on the longest text of the batch.

    None where it never does.
    """
    limits = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if any("dynamic" in str(kind) for kind in kinds):
            limits.append(module.original_max_seq_len)
        if "longrope" in kinds:
            parameters = module.config.rope_parameters
            per_kind = [parameters] if "rope_type" in parameters else list(parameters.values())
            limits += [one["original_max_position_embeddings"] for one in per_kind if one["rope_type"] == "longrope"]
    return min(limits, default=None)


@torch.inference_mode()
def forget_long_texts(model: Any) -> None:
    """Bring the rotation of positions back to what it is for short texts, after a long text has changed it.

    Transformers itself does so when the model reads a text below the limit, so the model is given one token to read.
    """
    if fixed_rotation_limit(model) is not None:
        zero = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        model.get_decoder()(inputs_embeds=model.get_input_embeddings()(zero), position_ids=zero, use_cache=False)


def limit_threads(num_threads: int) -> None:
    """Let this process compute with `num_threads` CPU threads."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
