"""The stored sensitivity against Jacobians of the stock projectors, on the features that reach them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families.models import TINY
from zoo_ops import SELECTORS, USES_ATTENTION, USES_SENSITIVITY, draw_directions, estimate_sensitivity
from zoo_ops.naive import closed_form_naive, directional_naive

CLOSED = [name for name, tiny in TINY.items() if not tiny.linear and name != "gemma3"]


class _RMSNorm(nn.Module):
    """Of Qwen2.5-VL without its detour over float32."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight, self.eps = stock.weight, stock.variance_epsilon

    def forward(self, rows: Tensor) -> Tensor:
        return self.weight * rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + self.eps)


def stock_projector(case: Any, *, twin: bool) -> Callable[[Tensor], Tensor]:
    """The stock module in float64, rows (n, D) to (n, O)."""
    model = case.stock.model
    module = model.visual.merger if hasattr(model, "visual") else model.multi_modal_projector
    module = copy.deepcopy(module).double()
    if twin and case.tiny.family == "qwen2_5_vl":
        module.ln_q = _RMSNorm(module.ln_q)
    if not hasattr(model, "visual"):
        return module
    return lambda rows: module(rows.reshape(4 * len(rows), -1)).reshape(len(rows), -1)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form_is_the_jacobians_norm(case, name):
    case = case(name)
    features = case.encoded[0].features_ND[:6].clone().double()
    value = estimate_sensitivity(features[None], case.encoder.projector)[0]
    for twin, tolerance in ((True, 1e-10), (False, 1e-6)):
        expected = closed_form_naive(features, stock_projector(case, twin=twin))
        assert ((value - expected) / expected).abs().max() <= tolerance


@pytest.mark.parametrize("name", CLOSED)
def test_the_stored_sensitivity_is_that(case, name):
    case = case(name)
    for image, row in list(zip(case.encoded, case.rows(), strict=True))[:2]:
        expected = closed_form_naive(image.features_ND[:8].clone().double(), stock_projector(case, twin=True))
        got = torch.tensor(row["sensitivity"][:8]).double()
        assert ((got - expected) / expected).abs().max() <= 1e-4


def test_gemma_sensitivity_is_directional(case):
    case = case("gemma3")
    stock = copy.deepcopy(case.stock.model.multi_modal_projector).double()

    def behind_the_pooling(rows: Tensor) -> Tensor:
        return stock.mm_soft_emb_norm(rows) @ stock.mm_input_projection_weight

    features = case.encoded[0].features_ND.clone().double()
    directions = draw_directions(64, features.shape[1], seed=0).double()
    expected = directional_naive(features, behind_the_pooling, directions)
    got = torch.tensor(case.rows()[0]["sensitivity"]).double()
    assert ((got - expected) / expected).abs().max() <= 1e-4
    assert got.std() > 0.01 * got.mean()  # not constant: it carries information


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.linear])
@pytest.mark.parametrize("selector", sorted({*SELECTORS} - {*USES_SENSITIVITY} - {*USES_ATTENTION}))
def test_selectors_without_sensitivity_work_on_linear_projectors(case, name, selector):
    case = case(name)
    for row in case.rows(selector):
        assert sorted(row["ranking"]) == list(range(row["num_tokens"]))
        assert row["sensitivity"] is None
