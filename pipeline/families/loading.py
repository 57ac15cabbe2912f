"""Loading a part of a checkpoint, and watching a module at work without touching it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint


@dataclass
class Captured:
    """A module's own input and output, as seen in its last call."""

    input: Tensor
    output: Tensor


@contextmanager
def captured(module: nn.Module) -> Iterator[Captured]:
    """Record what goes into and comes out of `module` in the block; fails if it was not called."""
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


def load_part(part: type[Any], checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """`part.from_pretrained`, quiet, in evaluation mode, complete or refused.

    Args:
        part: a `PreTrainedModel` subclass that holds some modules of the stock architecture under their stock names;
            tensors of the others are never read.

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
    except (OSError, ValueError) as error:
        raise UserError(f"--model {checkpoint.name}: its weights can't be loaded ({_first_line(error)})") from error
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


def limit_threads(num_threads: int) -> None:
    """Let this process compute with `num_threads` CPU threads."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
