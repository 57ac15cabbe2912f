"""How far a low-rank projector moves kept sets, at the size of a test."""

import pytest
import torch
from torch import nn

from benchmarks import low_rank
from zoo_ops import ProjectorSpec


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_the_bundled_model_and_its_images_are_measured(monkeypatch):
    monkeypatch.setattr(low_rank, "IMAGES", 2)
    spec, features, projected = low_rank.of_bundled_model()
    assert (features.shape[0], projected.shape[:2]) == (2, features.shape[:2])
    drawn, low, full = low_rank.compare("bundled model", ((8, 2), (128, 128)), spec, features, projected)
    assert {row["images"] for row in (drawn, low, full)} == {2}
    assert low["energy"][1] < low["energy"][0] < 1.0
    assert low["spearman_mean"] < full["spearman_mean"]
    for row in (drawn, low, full):
        assert list(row["zoo_kept_alike"]) == [f"{round(features.shape[1] * share)}" for share in low_rank.BUDGETS]
    assert min(full["zoo_kept_alike"].values()) > max(low["sensitivity_kept_alike"].values())


def test_random_weights_are_measured():
    torch.manual_seed(0)
    spec = ProjectorSpec(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64))
    features = torch.randn(1, 48, 16) * torch.rand(1, 48, 1).add(0.5)
    rows = low_rank.compare("random weights", ((4, 4), (16, 64)), spec, features, spec(features))
    assert [row["estimate"] for row in rows[1:]] == ["rank 4 of 16, 4 of 64", "rank 16 of 16, 64 of 64"]
