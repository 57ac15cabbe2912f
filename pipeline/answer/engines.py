"""The engines. Each has one module, and one line here; the module is imported by the worker that answers with it.

A module has a function `load(settings: GenerateSettings, device: torch.device) -> Callable[[int], Engine]`, which gives
the engine at a batch size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Engine, ServerSettings
from pipeline.answer.posing import check_system
from pipeline.answer.served import ARCHITECTURES
from pipeline.answer.settings import AnswerSettings
from pipeline.errors import UserError
from pipeline.families.base import Checkpoint, Prompter
from pipeline.families.generation_settings import followed
from pipeline.settings import flag, options

if TYPE_CHECKING:
    import torch

    from pipeline.answer.generate_settings import GenerateSettings

# Families whose models vLLM runs with the plugin of integrations/vllm.
SERVED = tuple(ARCHITECTURES)
# What stands around an image of InternVL is of its processor, and a server knows the chat template alone.
CHATTED = tuple(family for family in SERVED if family != "internvl")


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What is known of an engine without importing it."""

    module: str
    options: tuple[str, ...] = ()  # settings that are of this engine alone
    families: tuple[str, ...] | None = None  # whose models it runs; None: all
    is_structured: bool = False  # it can keep answers to a JSON schema or a regular expression
    is_remote: bool = False  # it computes elsewhere: its workers need no device


ENGINES = {
    "transformers": EngineKind("pipeline.answer.transformers_engine"),
    "vllm": EngineKind("pipeline.answer.vllm_engine", ("engine_python",), SERVED, is_structured=True),
    "openai": EngineKind(
        "pipeline.answer.openai_engine",
        ("server", "served_model", "concurrency", "request_timeout_sec", "trust_server_template"),
        CHATTED,
        is_structured=True,
        is_remote=True,
    ),
}


def load_engine(settings: "GenerateSettings", device: "torch.device") -> Callable[[int], Engine]:
    """The engine at a batch size; loads what it needs."""
    load: Callable[[GenerateSettings, torch.device], Callable[[int], Engine]]
    load = import_module(ENGINES[settings.engine].module).load
    return load(settings, device)


def check_engine(settings: AnswerSettings, checkpoint: Checkpoint, family: str, positions: str) -> None:
    """Refuse what the chosen engine can't do.

    Args:
        settings: of the job.
        checkpoint: the model.
        family: of the checkpoint.
        positions: how kept tokens are numbered.

    Raises:
        UserError: naming the option.
    """
    name, kind = settings.engine, ENGINES[settings.engine]
    marks = {field: (info.default, option) for field, info, option in options(AnswerSettings)}
    for other, its in ENGINES.items():
        for field in its.options:
            default, option = marks[field]
            if other != name and getattr(settings, field) != default:
                raise UserError(
                    f"{flag(field, option)} is for --engine {other}, but --engine {name} answers; leave it out, or "
                    f"give --engine {other}"
                )
    if kind.families is not None and family not in kind.families:
        raise UserError(
            f"--engine {name}: it runs models of {', '.join(kind.families)}, and the model is of {family}; answer "
            "with --engine transformers"
        )
    if kind.families is not None and positions == "original":
        raise UserError(
            f"--positions original: --engine {name} numbers kept tokens one after the other; leave the option out, "
            "or answer with --engine transformers"
        )
    if not kind.is_structured:
        for form in ("json_schema", "regex"):
            if getattr(settings, form) is not None:
                able = " or ".join(other for other, its in ENGINES.items() if its.is_structured)
                raise UserError(
                    f"{flag(form)}: --engine {name} can't keep answers to a form; leave the option out, or give "
                    f"--engine {able}"
                )
    if kind.is_remote and (settings.device != "auto" or settings.gpus_per_worker):
        of_device = "--device" if settings.device != "auto" else "--gpus-per-worker"
        raise UserError(f"{of_device}: with --engine {name} the model runs where its server does; leave the option out")
    if kind.is_remote and settings.server is None:
        raise UserError(f"--engine {name} asks a server; give its address as --server http://HOST:PORT/v1")
    if kind.families is not None:
        followed(checkpoint, name)


def check_prompter(
    settings: AnswerSettings,
    server: ServerSettings | None,
    prompter: Prompter,
    decoding: Decoding,
    checkpoint: Checkpoint,
) -> None:
    """Refuse what the checkpoint's chat template has no place for, and a server that is not what the job needs.

    Raises:
        UserError: saying which.
    """
    if decoding.system is not None:
        check_system(prompter, settings.model, decoding.system)
    if server is not None:
        from pipeline.answer.openai_engine import ENGINE, check_server  # here: no other job needs what it imports

        check_server(server, prompter, decoding, followed(checkpoint, ENGINE), settings.model)
