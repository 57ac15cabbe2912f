"""Rank correlations against scipy's, and what the estimators must agree on."""

import pytest
import torch
from scipy import stats

from zoo_ops import ProjectorSpec, estimate_sensitivity, estimator_agreement, spearman


@pytest.mark.parametrize("levels", [3, 10**6])
def test_spearman_is_that_of_scipy(levels):
    values = (torch.rand(4, 200) * levels).floor()
    expected = stats.spearmanr(values.numpy(), axis=1).statistic
    assert torch.allclose(spearman(values), torch.from_numpy(expected), atol=1e-12)


def test_spearman_of_a_constant_is_not_a_number():
    assert spearman(torch.stack([torch.zeros(5), torch.arange(5.0)]))[0].isnan().all()


def test_agreement_of_estimators_and_banks(make_mlp):
    mlp = make_mlp()
    features = torch.randn(2, 63, 60) * 3
    counts = torch.tensor([63, 30])
    result = estimator_agreement(features, mlp, num_directions=32, seeds=(4, 9), num_tokens_B=counts)
    assert result.labels == (
        "closed_form",
        "directional/seed=4",
        "directional/seed=9",
        "finite_difference/seed=4",
        "finite_difference/seed=9",
    )
    one = estimate_sensitivity(features[1:, :30], mlp)
    other = estimate_sensitivity(features[1:, :30], mlp, estimator="directional", num_directions=32, seed=9)
    expected = stats.spearmanr(one[0].numpy(), other[0].numpy()).statistic
    assert result.spearman_BRR[1, 0, 2].item() == pytest.approx(expected, abs=1e-12)
    assert (result.spearman_BRR[:, 1, 3] > 0.999).all()
    assert torch.equal(result.spearman_BRR, result.spearman_BRR.transpose(1, 2))


def test_opaque_projectors_are_compared_without_the_closed_form():
    result = estimator_agreement(torch.randn(1, 20, 6), ProjectorSpec.opaque(torch.tanh), seeds=(0,))
    assert result.labels == ("directional/seed=0", "finite_difference/seed=0")
