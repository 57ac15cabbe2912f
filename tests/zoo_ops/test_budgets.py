"""Budget helpers against their definitions, by counting."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from zoo_ops import Ranking, budget_by_count, budget_by_gain, budget_by_mean, budget_by_ratio, rank_tokens


def ranked(images, tokens, kept, *, seed=0, counts=None, **change):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(images, tokens, 6, generator=generator)
    s = torch.rand(images, tokens, generator=generator)
    return rank_tokens(z, s, max_tokens=kept, num_tokens_B=counts, **change)


def counted(ranking, threshold, least, most):
    """clip(1 + #{k >= 2: gain >= t}, least, most), image by image."""
    budgets = []
    for picks, gains in zip(ranking.indices_BK.tolist(), ranking.gains_BK.tolist(), strict=True):
        gains = [gain for pick, gain in zip(picks, gains, strict=True) if pick >= 0]
        passing = 1 + sum(gain >= threshold for gain in gains[1:])
        budgets.append(min(max(passing, least), most, len(gains)))
    return budgets


def test_count_and_ratio():
    counts = torch.tensor([40, 3, 17, 25])
    ranking = ranked(4, 40, 20, counts=counts)
    assert budget_by_count(ranking, 10).tolist() == [10, 3, 10, 10]
    assert budget_by_ratio(ranking, 0.1, num_tokens_B=counts).tolist() == [4, 1, 2, 3]
    assert budget_by_ratio(ranking, 0.5, num_tokens_B=counts).tolist() == [20, 2, 9, 13]


def test_gain():
    ranking = ranked(5, 30, 30, counts=torch.tensor([30, 1, 4, 30, 20]))
    for threshold in (0.0, 0.1, 0.3, 0.9, 5.0):
        assert budget_by_gain(ranking, threshold).tolist() == counted(ranking, threshold, 1, 30)
        bounded = budget_by_gain(ranking, threshold, min_tokens=3, max_tokens=9)
        assert bounded.tolist() == counted(ranking, threshold, 3, 9)
    grouped = ranked(5, 30, 30, groups_BN=torch.arange(30).expand(5, -1) % 3)
    assert budget_by_gain(grouped, 0.2).tolist() == counted(grouped, 0.2, 1, 30)


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 6), st.integers(0, 20), st.floats(0, 1), st.booleans())
@settings(deadline=None, max_examples=80, derandomize=True)
def test_mean_is_met_by_the_least_threshold(seed, images, least, room, part, grouped):
    most = least + room
    mean = least + part * room
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 41, (images,), generator=generator)
    groups = torch.randint(3, (images, 40), generator=generator) if grouped else None
    ranking = ranked(images, 40, 40, seed=seed, counts=counts, groups_BN=groups)
    result = budget_by_mean(ranking, mean, min_tokens=least, max_tokens=most)
    assert result.budgets_B.tolist() == counted(ranking, result.gain_threshold, least, most)
    total = int(mean * images + 1e-9)
    if result.gain_threshold != float("inf"):
        assert sum(result.budgets_B.tolist()) <= max(total, sum(counted(ranking, float("inf"), least, most)))
    lower = [g for g in ranking.gains_BK.flatten().tolist() if 0 <= g < result.gain_threshold]
    for gain in sorted(lower, reverse=True):
        budgets = counted(ranking, gain, least, most)
        if budgets != result.budgets_B.tolist():
            assert sum(budgets) > total
            break


def test_mean_of_the_issue():
    """64 tokens per image on average, between 16 and 192."""
    counts = torch.randint(100, 577, (20,), generator=torch.Generator().manual_seed(2))
    ranking = ranked(20, 576, 192, counts=counts)
    result = budget_by_mean(ranking, 64, min_tokens=16, max_tokens=192)
    assert result.budgets_B.double().mean() == 64
    assert result.budgets_B.amin() >= 16
    assert result.budgets_B.amax() <= 192
    assert torch.equal(budget_by_gain(ranking, result.gain_threshold, min_tokens=16, max_tokens=192), result.budgets_B)


def test_ties_at_the_threshold_are_left_out():
    gains = torch.tensor([[1.0, 0.5, 0.5, 0.5], [1.0, 0.5, 0.5, 0.2]])
    ranking = Ranking(torch.arange(4).expand(2, -1), gains)
    result = budget_by_mean(ranking, 2, min_tokens=1, max_tokens=4)
    assert result.budgets_B.tolist() == [1, 1]
    assert budget_by_mean(ranking, 3.5, min_tokens=1, max_tokens=4).budgets_B.tolist() == [4, 3]
    assert budget_by_mean(ranking, 4, min_tokens=1, max_tokens=4).budgets_B.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: budget_by_count(r, 11), "count is 11, expected at most 10.*max_tokens=11"),
        (lambda r: budget_by_count(r, 0), "count is 0"),
        (lambda r: budget_by_ratio(r, 0.0, num_tokens_B=torch.tensor([20, 20])), "ratio is 0"),
        (lambda r: budget_by_ratio(r, 1.5, num_tokens_B=torch.tensor([20, 20])), r"ratio is 1\.5"),
        (lambda r: budget_by_ratio(r, 0.9, num_tokens_B=torch.tensor([20, 20])), r"ratio 0\.9, in tokens, is 18"),
        (lambda r: budget_by_gain(r, float("nan")), "threshold is NaN"),
        (lambda r: budget_by_gain(r, 0.1, max_tokens=11), "max_tokens is 11, expected at most 10"),
        (lambda r: budget_by_mean(r, 9, min_tokens=1, max_tokens=8), "mean_tokens is 9, expected between min_tokens=1"),
        (
            lambda r: budget_by_mean(r, 9, min_tokens=3, max_tokens=2),
            "max_tokens is 2, expected an integer of at least 3",
        ),
    ],
)
def test_errors_name_value_expectation_and_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call(ranked(2, 20, 10))
