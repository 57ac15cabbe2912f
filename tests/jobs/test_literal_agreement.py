"""The artifact's kept sets against a computation of its own: stock model, raw images, float64, the paper's loops."""

import json
import math

import pyarrow.parquet as pq
import pytest
import torch
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration


def sensitivity(features_ND: torch.Tensor, projector: torch.nn.Module, *, written_out: bool = False) -> torch.Tensor:
    """||J||_F / sqrt(D) of the Jacobian J = W2 diag(gelu'(W1 x + b1)) W1, written out or by the norm of a product."""
    w1, b1, w2 = (p.double() for p in (projector.linear_1.weight, projector.linear_1.bias, projector.linear_2.weight))
    a = features_ND @ w1.T + b1
    slope = 0.5 * (1 + torch.erf(a / math.sqrt(2))) + a * torch.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    if written_out:
        norm = torch.einsum("oh,nh,hd->nod", w2, slope, w1).flatten(1).norm(dim=1)
    else:
        norm = torch.einsum("nh,hk,nk->n", slope, (w2.T @ w2) * (w1 @ w1.T), slope).sqrt()
    return norm / math.sqrt(features_ND.shape[1])


def greedy(z: torch.Tensor, s: torch.Tensor, count: int) -> tuple[list[int], list[float]]:
    """The published selection, and at each pick the lead over the runner-up."""
    unit = z / z.norm(dim=1, keepdim=True)
    distance = 1 - unit @ unit.T
    weight = (s - s.min()) / (s.max() - s.min())
    picked: list[int] = []
    leads = []
    for _ in range(count):
        score = weight * distance[:, picked].min(1).values if picked else weight.clone()
        score[picked] = -torch.inf
        best = score.topk(2)
        picked.append(int(best.indices[0]))
        leads.append(float(best.values[0] - best.values[1]))
    return picked, leads


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow, id="all"), pytest.param(2, id="half")])
@torch.no_grad()
def test_kept_sets_equal_an_independent_computation_from_raw_images(share, pruned_64, raw_images, tiny_llava):
    """Of every image, or of every second one."""
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava, dtype=torch.float32).eval()
    processor = CLIPImageProcessor.from_pretrained(tiny_llava)
    projector = model.model.multi_modal_projector
    manifest = json.loads((pruned_64 / "manifest.json").read_text())
    rows = [
        row
        for s in manifest["shards"]
        for row in pq.read_table(pruned_64 / s["files"]["selections"]["path"]).to_pylist()
    ]
    assert len(rows) == 307
    rows, different = rows[::share], 0
    for row in rows:
        pixels = processor(raw_images[row["image_id"]], return_tensors="pt")["pixel_values"]
        tower = model.model.vision_tower(pixels, output_hidden_states=True)
        features = tower.hidden_states[model.config.vision_feature_layer][0, 1:]
        weights = sensitivity(features.double(), projector)
        if row is rows[0]:
            written_out = sensitivity(features.double(), projector, written_out=True)
            torch.testing.assert_close(weights, written_out, rtol=1e-12, atol=0.0)
        picks, leads = greedy(projector(features).double(), weights, 64)
        if set(picks) != set(row["ranking"]):
            different += 1
            parting = next(n for n, (a, b) in enumerate(zip(picks, row["ranking"], strict=True)) if a != b)
            assert leads[parting] < 1e-4, f"{row['source']} parts at pick {parting} where the lead is {leads[parting]}"
    assert different <= 0.03 * len(rows)
