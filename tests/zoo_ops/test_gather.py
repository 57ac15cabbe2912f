"""gather_tokens against its literal twin."""

import pytest
import torch

from zoo_ops import Ranking, gather_tokens, rank_tokens
from zoo_ops.naive import gather_naive

N, O = 63, 12  # noqa: E741


@pytest.fixture
def ranked():
    z, counts = torch.randn(4, N, O), torch.tensor([63, 5, 30, 12])
    return z, counts, rank_tokens(z, torch.rand(4, N), max_tokens=20, num_tokens_B=counts)


@pytest.mark.parametrize("order", ["pick", "raster"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("as_list", [False, True])
def test_kept_rows_are_the_features_bit_for_bit(ranked, order, dtype, as_list):
    z, counts, ranking = ranked
    features = [image[:count].to(dtype) for image, count in zip(z, counts, strict=True)] if as_list else z.to(dtype)
    for budget in (1, 7, 20):
        kept = gather_tokens(features, ranking, budget=budget, order=order)
        assert kept.features_BKO.dtype == dtype
        for image in range(4):
            count = min(budget, int(counts[image]))
            picks = ranking.indices_BK[image, :count].tolist()
            expected = gather_naive(z[image].to(dtype), picks, budget=count, order=order)
            assert torch.equal(kept.features_BKO[image, :count], expected)
            assert kept.mask_BK[image].tolist() == [True] * count + [False] * (kept.mask_BK.shape[1] - count)
            assert kept.indices_BK[image, :count].tolist() == (sorted(picks) if order == "raster" else picks)
            assert (kept.features_BKO[image, count:] == 0).all()
            assert (kept.indices_BK[image, count:] == -1).all()


def test_budgets_may_differ_by_image(ranked):
    z, _, ranking = ranked
    kept = gather_tokens(z, ranking, budget=torch.tensor([3, 20, 0, 9]), order="pick")
    assert kept.mask_BK.sum(1).tolist() == [3, 5, 0, 9]
    assert kept.features_BKO.shape == (4, 20, O)


def test_padding_of_the_features_is_not_read(ranked):
    z, counts, ranking = ranked
    z[torch.arange(N) >= counts[:, None]] = torch.nan
    assert gather_tokens(z, ranking, budget=20).features_BKO.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 21}, "budget is 21, expected 1 to 20.*max_tokens=21"),
        ({"budget": 0}, "budget is 0, expected an integer of at least 1"),
        ({"budget": torch.tensor([1, 2, 3, -1])}, "budget is -1, expected 0 to 20"),
        ({"budget": torch.tensor([1, 2])}, r"budget has shape \(2,\)"),
        ({"order": "random"}, "order is 'random', expected one of pick, raster"),
        ({"features": torch.randn(3, N, O)}, "features holds 3 images, expected 4"),
        ({"features": torch.randn(4, N)}, "wrong number of axes"),
        ({"features": torch.randn(4, 9, O)}, "names token .*expected below 9"),
    ],
)
def test_errors_name_value_expectation_and_remedy(ranked, change, message):
    z, _, ranking = ranked
    arguments = {"features": z, "budget": 20, **change}
    with pytest.raises(ValueError, match=message):
        gather_tokens(arguments.pop("features"), ranking, **arguments)


def test_an_empty_ranking_keeps_nothing():
    ranking = Ranking(torch.tensor([[-1, -1], [1, 0]]), torch.tensor([[-1.0, -1], [1, 0.5]]))
    kept = gather_tokens(torch.randn(2, 3, O), ranking, budget=2)
    assert kept.mask_BK.tolist() == [[False, False], [True, True]]
