"""rank_tokens against its literal twin, and its contract: ties, groups, padding, batch splits, errors."""

import pytest
import torch

from zoo_ops import CENTERED, SELECTORS, USES_ATTENTION, USES_SENSITIVITY, Ranking, estimate_sensitivity, rank_tokens
from zoo_ops import coverage as coverage_module
from zoo_ops import scores as scores_module
from zoo_ops.naive import rank_naive, rank_published

SCORED = tuple(name for name in SELECTORS if name not in ("random", "uniform_grid"))
N, O = 63, 60  # noqa: E741


def image_like(batch, tokens, width, *, dtype=torch.float32, clusters=7):
    """Projected features in a few clusters around a common mean, as a projector gives them."""
    centres = torch.randn(clusters, width, dtype=dtype)
    rows = centres[torch.randint(clusters, (batch, tokens))] + 0.4 * torch.randn(batch, tokens, width, dtype=dtype)
    return rows + 0.5 * torch.randn(width, dtype=dtype)


def rank(z, s, **settings):
    settings = {"max_tokens": z.shape[1], "seeds_B": torch.arange(z.shape[0]), "attention_BN": s, **settings}
    return rank_tokens(z, s, **settings)


@pytest.mark.parametrize("selector", SCORED)
@pytest.mark.parametrize("tokens", [1, 2, 3, 31, N])
def test_the_naive_twin_picks_the_same(selector, tokens):
    z = image_like(3, tokens, O, dtype=torch.float64)
    s = torch.rand(3, tokens, dtype=torch.float64)
    ranking = rank(z, s, selector=selector)
    for image in range(3):
        picks, gains = rank_naive(z[image], s[image], max_tokens=tokens, selector=selector)
        assert ranking.indices_BK[image].tolist() == picks
        assert torch.allclose(ranking.gains_BK[image], torch.tensor(gains), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("selector", SCORED)
def test_the_naive_twin_picks_the_same_in_groups(selector):
    z = image_like(2, N, O, dtype=torch.float64)
    s = torch.rand(2, N, dtype=torch.float64)
    groups = torch.randint(-1, 5, (2, N))
    groups[1, :3] = 40
    ranking = rank(z, s, selector=selector, groups_BN=groups)
    for image in range(2):
        picks, gains = rank_naive(z[image], s[image], max_tokens=N, selector=selector, groups_N=groups[image].tolist())
        left_out = int((groups[image] == -1).sum())
        assert ranking.indices_BK[image].tolist() == picks + [-1] * left_out
        assert torch.allclose(ranking.gains_BK[image], torch.tensor(gains + [-1.0] * left_out), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("selector", CENTERED)
@pytest.mark.parametrize("tokens", [1, 2, 3, N])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_naive_twin_picks_the_same_by_patch_means(selector, tokens, grouped):
    """The features that centring compares are others than those of the language model."""
    z, means = image_like(2, tokens, O, dtype=torch.float64), image_like(2, tokens, 19, dtype=torch.float64)
    means[:, :, 3] = 7.0  # a dimension that does not vary
    s = torch.rand(2, tokens, dtype=torch.float64)
    groups = torch.arange(tokens).expand(2, -1) % 3 if grouped else None
    ranking = rank(z, s, selector=selector, patch_means_BNd=means, groups_BN=groups)
    for image in range(2):
        groups_N = groups[image].tolist() if grouped else None
        picks, gains = rank_naive(
            z[image],
            s[image],
            max_tokens=tokens,
            selector=selector,
            groups_N=groups_N,
            patch_means_Nd=means[image],
        )
        assert ranking.indices_BK[image].tolist() == picks
        assert torch.allclose(ranking.gains_BK[image], torch.tensor(gains), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("selector", CENTERED)
def test_patch_means_are_compared_without_their_scale(selector):
    """Dimensions are standardized: what scales one of them changes nothing."""
    z, s, means = torch.randn(1, N, O), torch.rand(1, N), torch.randn(1, N, 16, dtype=torch.float64)
    ranking = rank(z, s, selector=selector, patch_means_BNd=means)
    scaled = rank(z, s, selector=selector, patch_means_BNd=means * torch.rand(16).add(0.1))
    assert torch.equal(ranking.indices_BK, scaled.indices_BK)
    plain = rank(z, s, selector=selector)
    assert not torch.equal(ranking.indices_BK, plain.indices_BK)


@pytest.mark.parametrize("selector", [name for name in SELECTORS if name not in CENTERED])
def test_the_others_do_not_read_patch_means(selector):
    z, s = torch.randn(1, N, O), torch.rand(1, N)
    ranking = rank(z, s, selector=selector, patch_means_BNd=torch.full((1, N, 4), torch.nan))
    assert torch.equal(ranking.indices_BK, rank(z, s, selector=selector).indices_BK)


@pytest.mark.parametrize("selector", CENTERED)
def test_a_blank_picture_by_patch_means(selector):
    means = (torch.randn(16) * 3).expand(1, N, 16)
    ranking = rank(torch.randn(O).expand(1, N, O), torch.full((1, N), 0.7), selector=selector, patch_means_BNd=means)
    assert ranking.indices_BK[0].tolist() == list(range(N))


def test_centred_divprune_begins_by_the_centred_distances():
    """The token that is alone once the common part is gone: the raw cosines name another one."""
    z = 3.0 + 0.1 * torch.randn(1, N, O)
    z[0, 40] = 3.0 - 0.5 * torch.randn(O)
    centred = z[0] - z[0].mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True)
    nearest = (1 - unit @ unit.T).fill_diagonal_(torch.inf).amin(0)
    ranking = rank(z, None, selector="divprune_centered")
    assert ranking.indices_BK[0, 0] == nearest.argmax()
    assert ranking.gains_BK[0, 0] == pytest.approx(float(nearest.max()), abs=1e-5)


@pytest.mark.parametrize("selector", ["coverage", "zoo_coverage"])
def test_coverage_takes_every_kind_of_token_before_it_repeats_one(selector):
    kinds = torch.randn(7, O)
    z, s = kinds.repeat(9, 1)[None], torch.rand(1, N) + 0.5
    ranking = rank(z, s, selector=selector)
    picks, gains = ranking.indices_BK[0].tolist(), ranking.gains_BK[0]
    assert {pick % 7 for pick in picks[:7]} == set(range(7))
    assert (gains[:7] > 0).all()
    assert gains[7:].tolist() == [0.0] * (N - 7)
    assert picks[7:] == sorted(picks[7:])


def test_the_first_pick_of_coverage_stands_for_most_tokens():
    """A crowd of near duplicates, and tokens that nothing is near to: distance begins with these, coverage with it."""
    crowd = torch.randn(O) + 0.05 * torch.randn(40, O)
    z = torch.cat([torch.randn(23, O), crowd])[None]
    assert rank(z, None, selector="coverage").indices_BK[0, 0] >= 23
    assert rank(z, None, selector="divprune").indices_BK[0, 0] < 23


@pytest.mark.parametrize("tokens", [63, 576, 1000])
def test_coverage_recomputes_only_what_it_must_to_the_same_bits(monkeypatch, tokens):
    z, s = image_like(1, tokens, 32, clusters=20), torch.rand(1, tokens)
    computed = []
    gains_of = coverage_module._gains
    monkeypatch.setattr(coverage_module, "_gains", lambda *a: computed.append(len(a[0])) or gains_of(*a))
    for selector in ("coverage", "zoo_coverage"):
        results, work = [], []
        for rows in (1, 32, tokens):
            monkeypatch.setattr(coverage_module, "FIRST_ROWS", rows)
            computed.clear()
            results.append(rank(z, s, selector=selector, max_tokens=60))
            work.append(sum(computed))
        for other in results[1:]:
            assert torch.equal(other.indices_BK, results[0].indices_BK)
            assert torch.equal(other.gains_BK, results[0].gains_BK)
        assert work[0] < 30 * tokens  # of 60 picks: half of what recomputing everything takes


@pytest.mark.parametrize("selector", ["coverage", "zoo_coverage"])
def test_gains_of_coverage_do_not_increase_from_the_first_pick_on(selector):
    ranking = rank(image_like(2, 300, O), torch.rand(2, 300), selector=selector)
    assert (ranking.gains_BK.diff(dim=1) <= 0).all()
    assert (ranking.gains_BK <= 1).all()


def scores_on_the_way(z, s, picks, selector="zoo"):
    """Best score and the pick's score at every step of `picks`, recomputed in float64."""
    z, s = z.double(), s.double()
    weight = (s - s.min()) / (s.max() - s.min())
    unit = z / z.norm(dim=-1, keepdim=True)
    distance = 1 - unit @ unit.T
    steps = []
    for t, pick in enumerate(picks):
        score = weight if t == 0 else weight * distance[picks[:t]].amin(0)
        score = score.clone()
        score[picks[:t]] = -torch.inf
        steps.append((score.max().item(), score[pick].item()))
    return steps


@pytest.mark.parametrize(("tokens", "width", "kept"), [(576, 1024, 64), (576, 4096, 192), (1024, 512, 205)])
def test_at_the_size_of_a_model_every_pick_is_the_best_or_a_near_tie(tokens, width, kept):
    z, s = image_like(1, tokens, width, clusters=40), torch.rand(1, tokens)
    ranking = rank(z, s, max_tokens=kept)
    for (best, taken), gain in zip(
        scores_on_the_way(z[0], s[0], ranking.indices_BK[0].tolist()), ranking.gains_BK[0].tolist(), strict=True
    ):
        assert best - taken <= 2e-6
        assert gain == pytest.approx(taken, abs=2e-6)


def test_the_published_form_picks_the_same():
    z, s = image_like(1, 300, 256, dtype=torch.float64), torch.rand(1, 300, dtype=torch.float64)
    published = rank_published(z[0], s[0], max_tokens=64)
    assert torch.equal(rank(z, s, max_tokens=64).indices_BK[0], published)


@pytest.mark.parametrize("tokens", [1, 2, 5, 576, 2880])
@pytest.mark.parametrize("selector", SELECTORS)
def test_sizes_from_one_token_to_2880(tokens, selector):
    z, s = torch.randn(1, tokens, 8), torch.rand(1, tokens)
    kept = min(tokens, 300)
    ranking = rank(z, s, max_tokens=kept, selector=selector)
    assert ranking.indices_BK.dtype == torch.int64
    assert ranking.gains_BK.dtype == torch.float32
    assert len(set(ranking.indices_BK[0].tolist())) == kept
    assert int(ranking.indices_BK.min()) >= 0
    assert int(ranking.indices_BK.max()) < tokens
    assert ranking.gains_BK.isfinite().all()


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_whole_image_can_be_ranked(selector):
    ranking = rank(torch.randn(2, N, O), torch.rand(2, N), selector=selector)
    for image in range(2):
        assert sorted(ranking.indices_BK[image].tolist()) == list(range(N))


@pytest.mark.parametrize("selector", SCORED)
@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-3, 1e4, 0.0])
def test_constant_tokens_are_taken_in_order(selector, scale):
    """All tokens alike: every weight is 1, every distance 0, every choice a tie."""
    z = (torch.randn(O) * scale).expand(1, N, O)
    ranking = rank(z, torch.full((1, N), 0.7), selector=selector)
    assert ranking.indices_BK[0].tolist() == list(range(N))


@pytest.mark.parametrize("width", [7, 1024, 4096])
def test_a_blank_picture_is_kept_from_its_first_token_on(make_mlp, width):
    """Scored and ranked, at widths of models: rounding must not tell equal tokens apart."""
    mlp = make_mlp(60, 129, width)
    features = (torch.randn(60) * 3).expand(1, 333, 60)
    sensitivity = estimate_sensitivity(features, mlp)
    with torch.no_grad():
        projected = mlp(features) + 10
    for selector in SCORED:
        ranking = rank(projected, sensitivity, selector=selector)
        assert ranking.indices_BK[0].tolist() == list(range(333))


@pytest.mark.parametrize("selector", ["zoo", "divprune", "zoo_centered"])
def test_duplicates_come_last_in_order_with_no_gain(selector):
    torch.manual_seed(5)
    distinct = torch.randn(7, O)
    z = distinct.repeat(9, 1)[None]
    s = torch.full((1, N), 3.0)
    ranking = rank(z, s, selector=selector)
    picks, gains = ranking.indices_BK[0].tolist(), ranking.gains_BK[0]
    if selector == "zoo":
        assert {pick % 7 for pick in picks[:7]} == set(range(7))
        assert (gains[:7] > 0).all()
    # zoo_centered: the weight of the most crowded token is 0. divprune: every token has a twin at distance 0.
    without_gain = [pick for pick, gain in zip(picks, gains.tolist(), strict=True) if gain == 0]
    assert len(without_gain) >= N - 7
    assert picks[-len(without_gain) + 1 :] == sorted(picks[-len(without_gain) + 1 :])


def test_equal_scores_go_to_the_smaller_index():
    z = torch.eye(16)[None]
    s = torch.tensor([[1.0, 5, 5, 5, 1, 5, 5, 1, 5, 1, 5, 5, 1, 5, 5, 5]])
    high = [i for i in range(16) if s[0, i] == 5]
    low = [i for i in range(16) if s[0, i] == 1]
    for selector in ("zoo", "sensitivity"):
        assert rank(z, s, selector=selector).indices_BK[0].tolist() == high + low
    assert rank(z, s, selector="divprune").indices_BK[0].tolist() == list(range(16))


def test_nearly_equal_sensitivities_keep_their_order():
    """Min-max weights of these two round to one value; the sensitivities decide."""
    s = torch.tensor([[1e6, 1.0, 1.0 + 2**-23, 0.0]])
    assert rank(torch.randn(1, 4, 3), s, selector="sensitivity").indices_BK[0].tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("selector", SELECTORS)
def test_groups_take_turns(selector):
    sizes = {3: 20, 0: 2, 7: 11, 1: 30}
    order = torch.randperm(N)
    groups = torch.cat([torch.full((size,), group) for group, size in sizes.items()])[order][None]
    ranking = rank(torch.randn(1, N, O), torch.rand(1, N), selector=selector, groups_BN=groups)
    turns = groups[0, ranking.indices_BK[0]].tolist()
    expected = [group for t in range(30) for group in sorted(sizes) if t < sizes[group]]
    assert turns == expected


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_group_is_ranked_as_an_image_of_its_own(selector):
    z, s, groups = torch.randn(1, N, O), torch.rand(1, N), torch.arange(N)[None] // 16
    ranking = rank(z, s, selector=selector, groups_BN=groups)
    if selector == "random":
        return
    for group in range(4):
        tokens = (groups[0] == group).nonzero().squeeze(1)
        alone = rank(z[:, tokens], s[:, tokens], selector=selector)
        of_group = ranking.indices_BK[0][groups[0, ranking.indices_BK[0]] == group]
        assert torch.equal(tokens[alone.indices_BK[0]], of_group)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("grouped", [False, True])
def test_batch_split_padding_and_order_give_the_same_bits(selector, grouped):
    counts = torch.tensor([63, 1, 17, 40, 63, 2])
    z, s, seeds = torch.randn(6, 70, 60), torch.rand(6, 70), torch.randint(1 << 60, (6,))
    groups = torch.randint(3, (6, 70)) if grouped else None
    outside = torch.arange(70) >= counts[:, None]
    z[outside], s[outside] = torch.nan, torch.inf
    together = rank_tokens(
        z,
        s,
        max_tokens=33,
        selector=selector,
        num_tokens_B=counts,
        groups_BN=groups,
        seeds_B=seeds,
        attention_BN=s,
        patch_means_BNd=z[:, :, :20],
    )
    for split in (1, 2, 4):
        apart = []
        for start in range(0, 6, split):
            part = slice(start, start + split)
            width = max(33, int(counts[part].max()))
            apart.append(
                rank_tokens(
                    z[part, :width],
                    s[part, :width],
                    attention_BN=s[part, :width],
                    patch_means_BNd=z[part, :width, :20],
                    max_tokens=33,
                    selector=selector,
                    num_tokens_B=counts[part],
                    groups_BN=None if groups is None else groups[part, :width],
                    seeds_B=seeds[part],
                )
            )
        assert torch.equal(torch.cat([r.indices_BK for r in apart]), together.indices_BK)
        assert torch.equal(torch.cat([r.gains_BK for r in apart]), together.gains_BK)


def test_images_ranked_side_by_side_or_one_by_one_give_the_same_bits(monkeypatch):
    z, s = torch.randn(5, N, O), torch.rand(5, N)
    groups = torch.randint(3, (5, N))
    together = [rank(z, s, groups_BN=g) for g in (None, groups)]
    monkeypatch.setattr(scores_module, "SIDE_BY_SIDE_BYTES", 1)
    apart = [rank(z, s, groups_BN=g) for g in (None, groups)]
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one.indices_BK, other.indices_BK)
        assert torch.equal(one.gains_BK, other.gains_BK)


@pytest.mark.parametrize("selector", [name for name in SCORED if name not in ("sensitivity", "cls_attention")])
def test_large_images_compute_distances_as_they_go(monkeypatch, selector):
    z, s = image_like(2, N, O, dtype=torch.float64), torch.rand(2, N, dtype=torch.float64)
    matrix = rank(z, s, selector=selector)
    monkeypatch.setattr(scores_module, "MATRIX_TOKENS", 10)
    rows = rank(z, s, selector=selector)
    assert torch.equal(rows.indices_BK, matrix.indices_BK)
    assert torch.allclose(rows.gains_BK, matrix.gains_BK)


def test_the_docstring_says_from_which_size_on_and_how_much_memory():
    told = " ".join((rank_tokens.__doc__ or "").split())
    tokens = scores_module.MATRIX_TOKENS, scores_module.MATRIX_TOKENS_OF_GPU
    assert "Above N = {:,} on the CPU and {:,} elsewhere".format(*tokens) in told
    mebibytes, gibibytes = scores_module.SIDE_BY_SIDE_BYTES >> 20, scores_module.SIDE_BY_SIDE_BYTES_OF_GPU >> 30
    assert f"as fit {mebibytes} MiB on the CPU and {gibibytes} GiB elsewhere" in told


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_ranked_in_float32(dtype):
    z, s = torch.randn(1, N, O).to(dtype), torch.rand(1, N).to(dtype)
    value, expected = rank(z, s), rank(z.float(), s.float())
    assert torch.equal(value.indices_BK, expected.indices_BK)
    assert torch.equal(value.gains_BK, expected.gains_BK)


def test_zero_features_are_at_distance_one():
    z = torch.randn(1, 5, O)
    z[0, 2] = 0
    ranking = rank(z, torch.ones(1, 5), max_tokens=5)
    step = ranking.indices_BK[0].tolist().index(2)
    assert ranking.gains_BK[0, step] == 1.0


def test_random_depends_on_its_seed_alone():
    z = torch.randn(3, N, O)
    seeds = torch.tensor([7, -(1 << 62), 7])
    ranking = rank(z, None, selector="random", seeds_B=seeds)
    torch.manual_seed(1)
    again = rank(torch.randn(3, N, O), None, selector="random", seeds_B=seeds)
    assert torch.equal(ranking.indices_BK, again.indices_BK)
    assert torch.equal(ranking.indices_BK[0], ranking.indices_BK[2])
    assert not torch.equal(ranking.indices_BK[0], ranking.indices_BK[1])


def test_random_takes_every_token_equally_often():
    draws = 2000
    ranking = rank(torch.zeros(draws, 8, 1), None, selector="random", max_tokens=2, seeds_B=torch.arange(draws))
    share = torch.bincount(ranking.indices_BK.flatten(), minlength=8) / draws
    assert (share - 0.25).abs().max() < 0.04


def test_uniform_grid_spreads_every_prefix():
    """24 x 24: of the first 4^k picks, every one of 2^k x 2^k equal cells holds one."""
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    positions = torch.stack([rows, columns], dim=-1).reshape(1, 576, 2)
    ranking = rank(torch.zeros(1, 576, 1), None, selector="uniform_grid", max_tokens=64, positions_BNC=positions)
    for cells, kept in ((2, 4), (4, 16), (8, 64)):
        place = positions[0, ranking.indices_BK[0, :kept]] * cells // 24
        assert len({tuple(cell) for cell in place.tolist()}) == kept
    gaps = torch.cdist(positions[0].double(), positions[0, ranking.indices_BK[0]].double()).amin(1)
    assert gaps.max() <= 3.7


def test_uniform_grid_without_positions_spreads_along_the_sequence():
    ranking = rank(torch.zeros(1, 64, 1), None, selector="uniform_grid", max_tokens=8)
    kept = ranking.indices_BK[0].sort().values
    assert (kept.diff() <= 10).all()
    assert (kept.diff() >= 6).all()
    assert ranking.gains_BK[0].tolist() == [(64 - t) / 64 for t in range(8)]


def test_ranking_leaves_its_inputs_alone():
    z, s = torch.randn(2, N, O), torch.rand(2, N)
    copies = z.clone(), s.clone()
    for selector in SELECTORS:
        rank(z, s, selector=selector)
    assert torch.equal(z, copies[0])
    assert torch.equal(s, copies[1])


def test_tokens_left_out_of_all_groups():
    ranking = rank(torch.randn(1, 4, O), torch.rand(1, 4), groups_BN=torch.full((1, 4), -1))
    assert isinstance(ranking, Ranking)
    assert ranking.indices_BK.tolist() == [[-1] * 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 64}, "max_tokens is 64, expected at most 63.*pass max_tokens=63"),
        ({"max_tokens": 0}, "max_tokens is 0, expected an integer of at least 1"),
        ({"max_tokens": 1.5}, r"max_tokens is 1\.5, expected an integer"),
        ({"selector": "best"}, "selector is 'best', expected one of zoo, zoo_centered"),
        ({"z": torch.randn(N, O)}, "projected_BNO has shape"),
        ({"s": torch.rand(2, 62)}, r"sensitivity_BN has shape \(2, 62\), expected \(2, 63\)"),
        ({"s": torch.ones(2, N, dtype=torch.int64)}, "sensitivity_BN has dtype torch.int64"),
        ({"s": None}, "sensitivity_BN is None, but selector 'zoo' needs it"),
        (
            {"s": None, "selector": "cls_attention"},
            "attention_BN is None, but selector 'cls_attention'.*class_attention",
        ),
        ({"attention_BN": torch.rand(2, 3)}, r"attention_BN has shape \(2, 3\), expected \(2, 63\)"),
        ({"patch_means_BNd": torch.rand(2, 3, 4)}, r"patch_means_BNd has shape \(2, 3, 4\), expected \(2, 63, d\)"),
        ({"patch_means_BNd": torch.rand(2, N)}, r"patch_means_BNd has shape \(2, 63\), expected 3 axes BNd"),
        ({"selector": "random", "seeds_B": None}, "seeds_B is None, but selector 'random'"),
        ({"selector": "random", "seeds_B": torch.arange(3)}, r"seeds_B has shape \(3,\), expected \(2,\)"),
        ({"seeds_B": torch.rand(2)}, "seeds_B has dtype torch.float32, expected integers"),
        ({"groups_BN": torch.zeros(2, 5, dtype=torch.int64)}, r"groups_BN has shape \(2, 5\)"),
        ({"groups_BN": torch.zeros(2, N)}, "groups_BN has dtype torch.float32"),
        ({"num_tokens_B": torch.tensor([3, 64])}, "num_tokens_B is 64 for image 1"),
        ({"num_tokens_B": torch.tensor([3.0, 4.0])}, r"expected \(2,\) integers"),
        ({"positions_BNC": torch.zeros(2, N, 3)}, "positions_BNC has shape"),
    ],
)
def test_errors_name_value_expectation_and_remedy(change, message):
    arguments = {"z": torch.randn(2, N, O), "s": torch.rand(2, N), **change}
    with pytest.raises(ValueError, match=message):
        rank(arguments.pop("z"), arguments.pop("s"), **arguments)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("selector", SELECTORS)
def test_bad_numbers_name_their_image(bad, selector):
    z, s = torch.randn(3, N, O), torch.rand(3, N)
    z[1, 62, 3] = bad
    with pytest.raises(ValueError, match="projected_BNO of image 1 of the batch holds NaN or Inf"):
        rank(z, s, selector=selector)
    z, s[2, 0] = torch.randn(3, N, O), bad
    for name, needed in (("sensitivity_BN", USES_SENSITIVITY), ("attention_BN", USES_ATTENTION)):
        if selector in needed:
            with pytest.raises(ValueError, match=f"{name} of image 2 of the batch holds NaN or Inf"):
                rank(z, s, selector=selector)
    if selector in CENTERED:
        with pytest.raises(ValueError, match="patch_means_BNd of image 2 of the batch holds NaN or Inf"):
            rank(z, torch.rand(3, N), selector=selector, patch_means_BNd=s[..., None])
