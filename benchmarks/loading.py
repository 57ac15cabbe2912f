"""What the prune side reads of a full-size LLaVA-1.5-7B checkpoint: bytes materialised, peak memory, seconds to ready.

    python benchmarks/loading.py              benchmarks/results/loading.json

The checkpoint is built on the spot in float16 with the real shapes and three shards: vision tower and projector are
random numbers, the language model's tensors are holes in the files (14 GB by their size, 0.6 GB on disk). Each side is
loaded in a fresh process. `--answer` also loads the language side and needs 16 GB of memory.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, which holds a file by the name of a standard module (selectors).
sys.path[0] = str(ROOT)

import argparse
import json
import struct
import subprocess
import tempfile
import time
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

from benchmarks.memory import peak_bytes, resident_bytes
from benchmarks.ops import environment
from pipeline.families.checkpoint import open_checkpoint

NUM_SHARDS = 3
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}


def build(folder: Path) -> dict[str, int]:
    """Write the checkpoint; bytes of each part."""
    config = LlavaConfig(vision_config=VISION, text_config=TEXT, image_token_index=32000, dtype="float16")
    config.architectures = ["LlavaForConditionalGeneration"]
    with torch.device("meta"):
        shapes = {name: list(p.shape) for name, p in LlavaForConditionalGeneration(config).named_parameters()}
    config.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(folder)
    names = sorted(shapes, key=lambda name: ("language_model" in name or "lm_head" in name, name))
    per_shard = -(-len(names) // NUM_SHARDS)
    sizes = {"language": 0, "vision": 0}
    index = {}
    for number in range(NUM_SHARDS):
        file = folder / f"model-{number + 1:05d}-of-{NUM_SHARDS:05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names[number * per_shard : (number + 1) * per_shard]:
            size = 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "F16", "shape": shapes[name], "data_offsets": [end, end + size]}
            sizes["language" if _is_language(name) else "vision"] += size
            index[name] = file.name
            end += size
        text = json.dumps(header).encode()
        with open(file, "wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for name, entry in header.items():
                if name != "__metadata__" and not _is_language(name):
                    stream.seek(8 + len(text) + entry["data_offsets"][0])
                    stream.write((0.02 * torch.randn(entry["shape"])).half().numpy().tobytes())
            stream.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sizes


def _is_language(name: str) -> bool:
    return "language_model" in name or "lm_head" in name


def load(folder: str, side: str) -> dict[str, Any]:
    """Load one side in this process."""
    import transformers.models.llava.modeling_llava  # noqa: F401  (imports are not loading)

    before = resident_bytes()
    started = time.perf_counter()
    checkpoint, family = open_checkpoint(folder)
    role = family.encoder if side == "prune" else family.answerer
    built: Any = role(checkpoint, torch.device("cpu"), torch.float16)
    model = built._model if side == "prune" else built.model
    # Weights are mapped until they are used; ready means read, and only then do they count as memory.
    for parameter in model.parameters():
        parameter.detach().view(torch.int16).amax()
    seconds = time.perf_counter() - started
    tensors = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    return {
        "side": side,
        "seconds_to_ready": round(seconds, 2),
        "tensors": len(tensors),
        "materialised_bytes": sum(tensors.values()),
        "language_bytes": sum(size for name, size in tensors.items() if _is_language(name)),
        "peak_rss_bytes": peak_bytes(),
        "rss_after_imports_bytes": before,
    }


def main() -> None:
    """Build, load each side in a process of its own, print and store."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--answer", action="store_true", help="also load the language side (16 GB of memory)")
    options.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "loading.json"))
    options.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.load:
        print(json.dumps(load(*given.load)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = build(folder)
        rows = []
        for side in ("prune", "answer") if given.answer else ("prune",):
            command = [sys.executable, __file__, "--load", str(folder), side]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(output.splitlines()[-1]))
    print(f"checkpoint: vision tower and projector {sizes['vision']:,} bytes, language model {sizes['language']:,}")
    for row in rows:
        assert (row["language_bytes"] == 0) == (row["side"] == "prune"), "the prune side holds no language tensor"
        imports, peak = row["rss_after_imports_bytes"] / 2**20, row["peak_rss_bytes"] / 2**20
        print(
            f"{row['side']}: {row['materialised_bytes']:,} bytes in {row['tensors']} tensors, peak memory {peak:,.0f} "
            f"MiB ({imports:,.0f} MiB of it imports), ready in {row['seconds_to_ready']} s"
        )
    record = {
        "command": "python benchmarks/loading.py",
        "environment": environment(torch.device("cpu")),
        "checkpoint": sizes,
        "rows": rows,
    }
    output = Path(given.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
