"""Run by the interpreter of vLLM's environment: asks a model through the vllm engine and writes down what came of it.

python -m tests.vllm.in_vllm MODEL FAMILY OUTPUT.json
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.answer.decoding import Decoding
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.answer.vllm_engine import Request, VllmEngine, load
from pipeline.budget import Budget
from pipeline.cluster.run_folder import StopFile
from pipeline.storage import LocalStore
from tests.vllm.made import questions

NEW_TOKENS = 16
STOP = ("w3", "blue")
DECODINGS = {
    "first round": Decoding(NEW_TOKENS),
    "second round": Decoding(NEW_TOKENS),
    "stopped": Decoding(NEW_TOKENS, stop=STOP),
}
DRAWN = Decoding(NEW_TOKENS, temperature=1.5, top_p=0.9, seed=3)


def main(model: str, family: str, output: str) -> None:
    """Ask, and write one JSON file."""
    settings = GenerateSettings(
        pruned=Path(),
        output=Path(),
        model=model,
        dtype="float32",
        budget=Budget("all"),
        batch_size=16,
        batch_tokens=1 << 15,
        decoding=Decoding(NEW_TOKENS),
        stop_file=StopFile(LocalStore(Path(output).parent), "stop"),
        engine="vllm",
    )
    engine = load(settings, torch.device("cpu"))(16)
    asked = questions(family)
    found: dict[str, Any] = {name: _answers(engine, asked, decoding) for name, decoding in DECODINGS.items()}
    found["drawn"] = [_answers(engine, order, DRAWN) for order in (asked, asked[::-1])]
    found["cached_tokens"], found["prompt_tokens"] = engine._vllm.cached_tokens, engine._vllm.prompt_tokens
    found["parameters"] = engine._vllm._llm.apply_model(_parameters)[0]
    found["refusals"] = {name: _refusal(engine, request) for name, request in _bad(engine, asked[0]).items()}
    found["after refusals"] = _answers(engine, asked, DECODINGS["first round"])
    Path(output).write_text(json.dumps(found))


def _answers(engine: VllmEngine, asked: list[Any], decoding: Decoding) -> list[dict[str, Any]]:
    replies = engine.answer(asked, decoding)
    return [{**asdict(reply), "token_ids": list(reply.token_ids), "seconds": None} for reply in replies]


def _parameters(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _bad(engine: VllmEngine, question: Any) -> dict[str, Request]:
    """Requests that the model class must refuse, each wrong in one way."""
    ((_, good),) = engine._requests([question], DECODINGS["first round"], {})
    rows, token = good.image["image_embeds"], engine._prompter.image_token_id
    images: dict[str, Any] = {
        "width": {**good.image, "image_embeds": rows[:, :-1]},
        "whole numbers": {**good.image, "image_embeds": rows.long()},
        "no row": {**good.image, "image_embeds": rows[:0]},
        "pixels": {"image_embeds": None, "pixel_values": torch.zeros(1, 3, 28, 28)},
    }
    if "kept_hw" in good.image:
        images["no places"] = {"image_embeds": rows}
        images["outside"] = {**good.image, "kept_hw": good.image["kept_hw"] + 100}
        images["too few places"] = {**good.image, "kept_hw": good.image["kept_hw"][:-1]}
    bad = {name: replace(good, image=image, key=name) for name, image in images.items()}
    return {**bad, "expanded": replace(good, token_ids=[token, *good.token_ids], key="expanded")}


def _refusal(engine: VllmEngine, request: Request) -> str | None:
    try:
        engine._vllm.add(request)
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
