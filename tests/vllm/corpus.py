"""The bundled corpus put to an engine at several budgets, in any process.

python -m tests.vllm.corpus PRUNED MODEL OUTPUT.json     vLLM's interpreter: with the vllm engine
"""

import json
import sys
from pathlib import Path

import torch

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Engine
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.answer.stage import answer_prompts
from pipeline.answer.vllm_engine import load
from pipeline.artifact.artifact import Artifact
from pipeline.budget import Budget
from pipeline.cluster.run_folder import StopFile
from pipeline.grading.grader import Grader
from pipeline.loader.shard import ShardLoader
from pipeline.storage import LocalStore

BUDGETS = {"16": Budget("count", 16), "64": Budget("count", 64), "all": Budget("all")}
NEW_TOKENS = 32

COLOURS = ("red", "green", "blue")
IN_FORM = Decoding(NEW_TOKENS, regex=f"({'|'.join(COLOURS)})")  # the model's words can't write JSON

Answers = dict[str, dict[str, list[int]]]  # token ids of each prompt by its id, by budget


def corpus_answers(pruned: str, engine: Engine) -> Answers:
    """What an engine answers to the whole corpus at each budget."""
    artifact = Artifact(Path(pruned))
    loader, shards = ShardLoader(artifact), [record.shard for record in artifact.checked_commits()]
    found: Answers = {name: {} for name in BUDGETS}
    for name, budget in BUDGETS.items():
        for shard in shards:
            loaded = loader.load(shard, budget)
            rows = answer_prompts(engine, loaded.prompts, loaded.images, decoding=Decoding(NEW_TOKENS), grader=Grader())
            found[name] |= {row.prompt_id: list(row.answer_tokens) for row in rows}
    return found


def main(pruned: str, model: str, output: str) -> None:
    """Answer with vLLM, and write one JSON file."""
    settings = GenerateSettings(
        pruned=Path(pruned),
        output=Path(),
        model=model,
        dtype="float32",
        budget=Budget("all"),
        batch_size=32,
        batch_tokens=1 << 15,
        decoding=Decoding(NEW_TOKENS),
        stop_file=StopFile(LocalStore(Path(output).parent), "stop"),
        engine="vllm",
    )
    engine = load(settings, torch.device("cpu"))(32)
    answers = corpus_answers(pruned, engine)
    Path(output).write_text(json.dumps({"answers": answers, "in form": _in_form(pruned, engine)}))


def _in_form(pruned: str, engine: Engine) -> list[str | None]:
    """Answers to some prompts that must keep to a form."""
    loaded = ShardLoader(Artifact(Path(pruned))).load(0, BUDGETS["16"])
    rows = answer_prompts(engine, loaded.prompts[:40], loaded.images, decoding=IN_FORM, grader=Grader())
    return [row.answer for row in rows]


if __name__ == "__main__":
    main(*sys.argv[1:])
