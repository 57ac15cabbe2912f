"""vLLM's side of benchmarks/serving.py: the same prompts from pictures, or from an artifact. Run in vLLM's environment.

    python benchmarks/serving_in_vllm.py pictures MODEL MANIFEST NEW_TOKENS PROMPTS
    python benchmarks/serving_in_vllm.py artifact MODEL PRUNED NEW_TOKENS PROMPTS

It loads the model, says so, and answers everything once for each line that it is given; what it says begins with
`MARK`. Prefix caching is on, so that what is before a prompt's own words is read once an image. In every turn pictures
have other names, so that nothing of the turn before is found.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(ROOT)

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from benchmarks.serving_baselines import TEMPLATE, asked_in
from pipeline.artifact.artifact import Artifact
from pipeline.budget import Budget
from pipeline.families.answering import kept_places
from pipeline.families.base import KeptImage
from pipeline.loader.shard import ShardLoader

MARK = "vllm side: "
PICTURES, ARTIFACT = "pictures", "artifact"
NEWLINE = "image_newline"
BLOCK = 32  # tokens; beginnings are shared by whole blocks
Asked = Iterator[tuple[str, str, str, Any]]  # a prompt's id and text, its image's name and data


def renamed(model: Path, folder: Path) -> Path:
    """The checkpoint as vLLM reads it: the tower under the names of older checkpoints, and with a processor."""
    for path in model.glob("*.json"):
        shutil.copy(path, folder)
    weights = load_file(model / "model.safetensors")
    old, new = "vision_tower.", "vision_tower.vision_model."
    names = {name: name if new in name else name.replace(old, new) for name in weights}
    save_file({names[name]: weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (folder / "processor_config.json").write_text(
        json.dumps(
            {
                "processor_class": "LlavaNextProcessor",
                "patch_size": config["vision_config"]["patch_size"],
                "vision_feature_select_strategy": config["vision_feature_select_strategy"],
                "num_additional_image_tokens": 1,
                "image_token": "<image>",
            }
        )
    )
    return folder


def of_pictures(manifest: Path) -> Asked:
    """Prompts about pictures, read and decoded here."""
    for one in asked_in(manifest):
        with Image.open(one.picture) as picture:
            image = picture.convert("RGB")
        for name, text in one.prompts:
            yield name, text, one.picture.name, image


def of_artifact(loader: ShardLoader, newline_O: torch.Tensor) -> Asked:
    """Prompts about kept rows, read here from the artifact's files."""
    loaded = loader.load(0, Budget("all"))
    rows = {image_id: rows_of(image, newline_O) for image_id, image in loaded.images.items()}
    for prompt in loaded.prompts:
        yield prompt.prompt_id, prompt.prompt, prompt.image_id, {"image_embeds": rows[prompt.image_id]}


def rows_of(image: KeptImage, newline_O: torch.Tensor) -> torch.Tensor:
    """Kept features of an image, and newlines between them."""
    structure = torch.tensor(image.selection.structure)
    order = torch.cat([kept_places(image), structure]).argsort()
    return torch.cat([image.features_KO.float(), newline_O.expand(len(structure), -1)])[order]


def main(kind: str, model: str, source: str, new_tokens: str, prompts: str) -> None:
    """Load, say so, answer when told to."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)
    import vllm

    with tempfile.TemporaryDirectory(prefix="serving-vllm-") as made:
        folder = Path(model)
        options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1}}
        if kind == PICTURES:
            folder = renamed(folder, Path(made))
        else:
            from zoo_prune_vllm import LIMITS, MODELS

            options = {
                "limit_mm_per_prompt": dict(LIMITS),
                "hf_overrides": {"architectures": [MODELS["llava_next"].architecture]},
                "enable_mm_embeds": True,
            }
        llm = vllm.LLM(
            str(folder), dtype="float32", enforce_eager=True, enable_prefix_caching=True, block_size=BLOCK,
            kv_cache_memory_bytes=2 << 30, mm_processor_cache_gb=0, generation_config="vllm", max_num_seqs=int(prompts),
            # Room for the rows of all images that run together; else their prompts would share nothing.
            max_num_batched_tokens=32_768, max_model_len=4096, seed=0, **options,
        )  # fmt: skip
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=int(new_tokens), ignore_eos=True, detokenize=False)
        asked = asked_of(kind, Path(source), Path(model))
        say({"loaded": vllm.__version__})
        for turn, _ in enumerate(sys.stdin):
            wall, cpu = time.perf_counter(), time.process_time()
            names = []
            for name, text, image, data in asked():
                request = {
                    "prompt_token_ids": tokenizer(TEMPLATE.format(prompt=text))["input_ids"],
                    "multi_modal_data": {"image": data},
                    "multi_modal_uuids": {"image": [f"{turn}-{image}"]},
                }
                llm.enqueue(request, sampling, use_tqdm=False)
                names.append(name)
            outputs = llm.wait_for_completion(use_tqdm=False)
            answers = [list(output.outputs[0].token_ids) for output in outputs]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            cached = sum(output.num_cached_tokens or 0 for output in outputs)
            found = {"wall_sec": wall, "cpu_sec": cpu, "cached_tokens": cached}
            say({**found, "answers": dict(zip(names, answers, strict=True))})


def asked_of(kind: str, source: Path, model: Path) -> Any:
    """What reads everything that is asked, anew in every turn."""
    if kind == PICTURES:
        return lambda: of_pictures(source)
    weights = load_file(model / "model.safetensors")
    newline_O = next(weight for name, weight in weights.items() if name.endswith(NEWLINE))
    loader = ShardLoader(Artifact(source))
    return lambda: of_artifact(loader, newline_O)


def say(what: dict[str, Any]) -> None:
    """One line for the process that started this one."""
    print(MARK + json.dumps(what), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
