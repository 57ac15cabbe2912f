"""What half precision does to the published estimator, and what shorter mantissas would do to the closed form.

    python benchmarks/half_precision.py              benchmarks/results/half_precision.json

Published: features, weights, steps and both projector passes in float16 or bfloat16, the norm of the difference in
float32; against the same in float32 with the same directions. Closed form: the operands of both products rounded
to the mantissa of TF32 or bfloat16, sums exact (what a matrix unit does), against float64.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, which holds a file by the name of a standard module (selectors).
sys.path[0] = str(ROOT)

import argparse
import io
import json
import tarfile
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ops import environment, show
from zoo_ops import draw_directions, estimate_sensitivity, spearman
from zoo_ops.activations import activation_derivative

STEP_SIZE = 0.01


def published(features_ND: Tensor, mlp: nn.Module, directions_MD: Tensor, dtype: torch.dtype) -> Tensor:
    """The literal estimator with model and features in `dtype`: (N, D) -> (N,) float32."""
    mlp.to(dtype)
    x = features_ND.to(dtype)
    total_N = torch.zeros(len(x))
    for step_D in (STEP_SIZE * directions_MD).to(dtype):
        total_N += (mlp(x + step_D) - mlp(x - step_D)).float().norm(dim=-1) / (2 * STEP_SIZE)
    mlp.float()
    return total_N / len(directions_MD)


def trained_like_projector() -> tuple[nn.Sequential, Tensor]:
    """1024-4096-4096 with a few strong directions in each layer; 576 tokens in clusters, five of them large."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 4096))
    layers: list[Any] = list(mlp)
    for layer in (layers[0], layers[2]):
        rows, columns = layer.weight.shape
        strengths = torch.logspace(0, -1.5, 64)
        layer.weight += (torch.randn(rows, 64) * strengths) @ torch.randn(64, columns) / (64 * columns) ** 0.5
    features = torch.randn(12, 1024)[torch.randint(12, (576,))] * 0.8 + 0.5 * torch.randn(576, 1024)
    features[:5] *= 4
    return mlp, features


def bundled_projector(images: int) -> tuple[nn.Sequential, Tensor]:
    """The bundled model's projector and its features of the first images of the bundled corpus, end to end."""
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = ROOT / "examples/tiny-llava"
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    pictures: list[Image.Image] = []
    with tarfile.open(ROOT / "examples/scenes/scenes-000000.tar") as archive:
        for member in archive:
            data = archive.extractfile(member)
            if len(pictures) < images and member.name.endswith(".jpg") and data is not None:
                try:
                    pictures.append(Image.open(io.BytesIO(data.read())).convert("RGB"))
                except OSError:
                    continue
    pixels = AutoProcessor.from_pretrained(folder).image_processor(pictures, return_tensors="pt")
    hidden = model.model.vision_tower(**pixels, output_hidden_states=True).hidden_states
    layers = model.model.multi_modal_projector
    features = hidden[model.config.vision_feature_layer][:, 1:].flatten(0, 1)
    return nn.Sequential(layers.linear_1, layers.act, layers.linear_2), features


def rounded(values: Tensor, mantissa_bits: int) -> Tensor:
    """float32 values rounded to the nearest with so many mantissa bits."""
    drop = 23 - mantissa_bits
    bits = values.contiguous().view(torch.int32)
    return ((bits + (1 << (drop - 1))) >> drop << drop).view(torch.float32)


def closed_form_rows(mlp: nn.Sequential, features_ND: Tensor) -> list[dict[str, Any]]:
    exact = estimate_sensitivity(features_ND[None].double(), mlp.double())[0]
    mlp.float()
    rows: list[dict[str, Any]] = [{"mantissa": "float32", "value": estimate_sensitivity(features_ND[None], mlp)[0]}]
    layers: list[Any] = list(mlp)
    w1, w2 = layers[0].weight, layers[2].weight
    form = (w1 @ w1.T) * (w2.T @ w2)
    for name, bits in (("TF32", 10), ("bfloat16", 7)):
        hidden = nn.functional.linear(rounded(features_ND, bits), rounded(w1, bits), layers[0].bias)
        slope = activation_derivative("gelu", hidden)
        square = (rounded(slope, bits) @ rounded(form, bits) * slope).sum(-1)
        rows.append({"mantissa": name, "value": square.clamp_min(0).sqrt() / w1.shape[1] ** 0.5})
    for row in rows:
        value = row.pop("value").double()
        row["largest_error"] = float(((value - exact) / exact).abs().max())
        row["spearman_float64"] = float(spearman(torch.stack([value, exact]))[0, 1])
    return rows


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Half precision and the published estimator.")
    parser.add_argument("--directions", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/half_precision.json"), help="- for none")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(torch.device("cpu")), "published": [], "closed_form": []}
    show(result["environment"])
    cases = {"trained-like 1024-4096-4096": trained_like_projector(), "bundled model": bundled_projector(4)}
    for name, (mlp, features) in cases.items():
        for count in arguments.directions:
            bank = draw_directions(count, features.shape[1], seed=0)
            expected = published(features, mlp, bank, torch.float32)
            for dtype in (torch.float16, torch.bfloat16):
                value = published(features, mlp, bank, dtype)
                row: dict[str, Any] = {"projector": name, "directions": count, "dtype": str(dtype).split(".")[1]}
                row["mean_bias"] = float((value / expected - 1).mean())
                row["spearman_float32"] = float(spearman(torch.stack([value, expected]))[0, 1])
                result["published"].append(row)
                show(row)
        for row in closed_form_rows(mlp, features):
            result["closed_form"].append({"projector": name, **row})
            show(result["closed_form"][-1])
    if arguments.output != "-":
        Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
