"""The process's precision settings are changed where they must be, and put back."""

import pytest
import torch
from torch import nn

from zoo_ops import constants as constants_module
from zoo_ops import estimate_sensitivity, spearman
from zoo_ops import sensitivity as sensitivity_module
from zoo_ops.activations import activation_derivative
from zoo_ops.precision import full_float32, tf32_on_cuda

CUDA, CPU = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_settings_nest_and_come_back(allowed):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(allowed)
        outside = CUDA.fp32_precision, CPU.fp32_precision
        with full_float32():
            assert (CUDA.fp32_precision, CPU.fp32_precision) == ("ieee", "ieee")
            with tf32_on_cuda():
                assert (CUDA.fp32_precision, CPU.fp32_precision) == ("tf32", "ieee")
            assert CUDA.fp32_precision == "ieee"
        assert (CUDA.fp32_precision, CPU.fp32_precision) == outside
        with pytest.raises(KeyError), full_float32():
            raise KeyError
        assert (CUDA.fp32_precision, CPU.fp32_precision) == outside
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_tf32_is_for_the_closed_form_alone_and_not_for_its_constants(make_mlp, monkeypatch):
    seen = {}

    def spy(module, name):
        function = getattr(module, name)

        def spied(*arguments, **settings):
            seen[name] = CUDA.fp32_precision
            return function(*arguments, **settings)

        monkeypatch.setattr(module, name, spied)

    for name in ("closed_form_rows", "directional_rows", "finite_difference_rows"):
        spy(sensitivity_module, name)
    spy(constants_module.QuadraticForm, "of")
    constants_module.clear_constants()
    for estimator in ("finite_difference", "directional", "closed_form"):
        estimate_sensitivity(torch.randn(1, 5, 60), make_mlp(), estimator=estimator, num_directions=2)
    assert seen == {
        "closed_form_rows": "tf32",
        "directional_rows": "ieee",
        "finite_difference_rows": "ieee",
        "of": "ieee",
    }


def test_the_closed_form_bears_operands_of_ten_mantissa_bits():
    """What TF32 does, done by hand: the rank correlation with float64 stays above 0.9999."""
    mlp = nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 512))
    features = torch.randn(576, 512) * (torch.rand(576, 1) + 0.5)

    def rounded(values):
        return ((values.detach().contiguous().view(torch.int32) + (1 << 12)) >> 13 << 13).view(torch.float32)

    with torch.no_grad():
        w1, w2 = mlp[0].weight, mlp[2].weight
        slope = activation_derivative("gelu", rounded(features) @ rounded(w1).T + mlp[0].bias)
        short = (rounded(slope) @ rounded((w1 @ w1.T) * (w2.T @ w2)) * slope).sum(-1).sqrt()
    exact = estimate_sensitivity(features[None].double(), mlp.double())[0]
    assert spearman(torch.stack([short.double(), exact]))[0, 1] >= 0.9999
