"""estimate_sensitivity against its literal twins, autograd and the published formula written out."""

import pytest
import torch
from torch import nn

from zoo_ops import NormSpec, ProjectorSpec, as_projector_spec, draw_directions, estimate_sensitivity
from zoo_ops.naive import closed_form_naive, directional_naive, finite_difference_naive

N, D = 63, 60


def relative_error(value, expected):
    return ((value - expected).abs() / expected.abs()).max().item()


def random_norm(kind, width, *, per_patch, bias):
    weight = torch.rand(width, dtype=torch.float64) + 0.5
    shift = torch.randn(width, dtype=torch.float64) if bias else None
    return NormSpec(kind, weight, shift, 1e-6, per_patch)


def uneven_rows(rows, width, dtype=torch.float64):
    return torch.randn(rows, width, dtype=dtype) * (torch.rand(rows, 1, dtype=dtype) * 3 + 0.1) + torch.randn(
        rows, 1, dtype=dtype
    )


NORM_CASES = [
    pytest.param("layer", True, True, 4, id="layer_per_patch"),  # Qwen2-VL, Qwen3-VL
    pytest.param("rms", True, False, 4, id="rms_per_patch"),  # Qwen2.5-VL
    pytest.param("layer", False, True, 4, id="layer_whole"),  # Qwen3-VL after the shuffle
    pytest.param("layer", False, True, 1, id="layer_one_patch"),  # InternVL
    pytest.param("rms", False, False, 1, id="rms_one_patch"),
]


def spec_with_norm(kind, per_patch, bias, patches, *, activation=None):
    width = D // patches if per_patch else D
    first, second = nn.Linear(D, 89).double(), nn.Linear(89, 70).double()
    norm = random_norm(kind, width, per_patch=per_patch, bias=bias)
    return ProjectorSpec(first, activation or nn.GELU(), second, norm=norm, num_patches=patches)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"])
def test_closed_form_is_the_jacobian_norm(make_mlp, activation, bias):
    mlp = make_mlp(activation=activation, bias=bias, dtype=torch.float64)
    features = torch.randn(2, N, D, dtype=torch.float64) * 2
    value = estimate_sensitivity(features, mlp)
    expected = torch.stack([closed_form_naive(image, mlp) for image in features])
    assert value.dtype == torch.float64
    assert relative_error(value, expected) <= 1e-10


@pytest.mark.parametrize(("kind", "per_patch", "bias", "patches"), NORM_CASES)
def test_closed_form_with_a_norm_is_the_jacobian_norm(kind, per_patch, bias, patches):
    spec = spec_with_norm(kind, per_patch, bias, patches)
    features = uneven_rows(N, D)
    value = estimate_sensitivity(features[None], spec)[0]
    assert relative_error(value, closed_form_naive(features, spec)) <= 1e-10


@pytest.mark.parametrize(("kind", "per_patch", "bias", "patches"), NORM_CASES)
def test_directional_with_a_norm_is_the_mean_over_the_bank(kind, per_patch, bias, patches):
    spec = spec_with_norm(kind, per_patch, bias, patches, activation=nn.SiLU())
    features = uneven_rows(N, D)
    value = estimate_sensitivity(features[None], spec, estimator="directional", num_directions=5, seed=3)[0]
    expected = directional_naive(features, spec, draw_directions(5, D, seed=3).double())
    assert relative_error(value, expected) <= 1e-10


@pytest.mark.parametrize("width_out", [20, 150])
def test_directional_is_the_mean_over_the_bank(make_mlp, width_out):
    """Narrow outputs take the plain product, wide ones the quadratic form."""
    mlp = make_mlp(width_out=width_out, dtype=torch.float64)
    features = torch.randn(N, D, dtype=torch.float64)
    value = estimate_sensitivity(features[None], mlp, estimator="directional", num_directions=7)[0]
    expected = directional_naive(features, mlp, draw_directions(7, D, seed=0).double())
    assert relative_error(value, expected) <= 1e-10


def test_directional_of_any_other_projector(make_mlp):
    mlp = make_mlp(dtype=torch.float64)

    def forward(x):
        return torch.tanh(mlp(nn.functional.normalize(x, dim=-1)))

    features = torch.randn(N, D, dtype=torch.float64)
    value = estimate_sensitivity(
        features[None], ProjectorSpec.opaque(forward), estimator="directional", num_directions=7
    )[0]
    expected = directional_naive(features, forward, draw_directions(7, D, seed=0).double())
    assert relative_error(value, expected) <= 1e-10


@pytest.mark.parametrize("opaque", [False, True])
def test_finite_difference_is_the_published_formula(make_mlp, opaque):
    """Written out here, float64 and float32, same directions."""
    mlp = make_mlp()
    features = torch.randn(N, D) * 2
    m, h = 64, 0.01
    u = torch.randn(m, D, generator=torch.Generator().manual_seed(11))
    u = u / u.norm(dim=-1, keepdim=True)
    published = {}
    for dtype in (torch.float64, torch.float32):
        mlp.to(dtype)
        x, directions = features.to(dtype), u.to(dtype)
        with torch.no_grad():
            delta = [(mlp(x + h * u_j) - mlp(x - h * u_j)) / (2 * h) for u_j in directions]
        published[dtype] = torch.stack([d.norm(dim=-1) for d in delta]).mean(0)
    mlp.float()
    projector = ProjectorSpec.opaque(mlp) if opaque else mlp
    value = estimate_sensitivity(
        features[None], projector, estimator="finite_difference", num_directions=m, step_size=h, seed=11
    )[0]
    assert value.dtype == torch.float32
    assert relative_error(value.double(), published[torch.float64]) <= 3e-4
    assert relative_error(value, published[torch.float32]) <= 6e-4


@pytest.mark.parametrize(("kind", "per_patch", "bias", "patches"), NORM_CASES)
def test_finite_difference_with_a_norm(kind, per_patch, bias, patches):
    spec = spec_with_norm(kind, per_patch, bias, patches)
    features = uneven_rows(N, D)
    settings = {"num_directions": 6, "step_size": 0.05, "seed": 2}
    value = estimate_sensitivity(features[None], spec, estimator="finite_difference", **settings)[0]
    with torch.no_grad():
        expected = finite_difference_naive(features, spec, draw_directions(6, D, seed=2).double(), step_size=0.05)
    assert relative_error(value, expected) <= 1e-9


def test_the_limits_of_the_three_estimators_agree(make_mlp):
    """H -> 0 leads finite differences to directional; closed form is their root mean square over the sphere."""
    mlp = make_mlp(dtype=torch.float64)
    features = torch.randn(1, N, D, dtype=torch.float64)
    directional = estimate_sensitivity(features, mlp, estimator="directional", num_directions=9)
    difference = estimate_sensitivity(features, mlp, estimator="finite_difference", num_directions=9, step_size=1e-4)
    assert relative_error(difference, directional) <= 1e-6
    # u_j = sqrt(D)-scaled axes are an exact design of second order.
    axes = torch.eye(D, dtype=torch.float64)
    jvp = torch.stack([torch.func.jvp(mlp, (features[0],), (a.expand(N, D),))[1] for a in axes])
    root_mean_square = jvp.square().sum(-1).mean(0).sqrt()
    assert relative_error(estimate_sensitivity(features, mlp)[0], root_mean_square) <= 1e-10


def test_many_rows_are_worked_on_in_chunks(make_mlp):
    mlp = make_mlp(dtype=torch.float64)
    features = torch.randn(1, 2880, D, dtype=torch.float64)
    for settings in ({}, {"estimator": "directional", "num_directions": 2}):
        whole = estimate_sensitivity(features, mlp, **settings)
        parts = [estimate_sensitivity(part, mlp, **settings) for part in features.split(701, dim=1)]
        assert relative_error(whole, torch.cat(parts, dim=1)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["closed_form", "directional", "finite_difference"])
@pytest.mark.parametrize("opaque", [False, True])
def test_half_precision_models_are_scored_in_float32(make_mlp, dtype, estimator, opaque):
    if opaque and estimator == "closed_form":
        pytest.skip("opaque projectors have no closed form")
    mlp = make_mlp(dtype=dtype)
    features = torch.randn(1, N, D).to(dtype)
    settings = {"estimator": estimator, "num_directions": 8}
    value = estimate_sensitivity(features, ProjectorSpec.opaque(mlp) if opaque else mlp, **settings)
    assert value.dtype == torch.float32
    assert mlp[0].weight.dtype == dtype
    expected = estimate_sensitivity(features.double(), mlp.double(), **settings)
    assert relative_error(value.double(), expected) <= (1e-5 if estimator != "finite_difference" else 3e-4)


def test_float32_is_kept_where_the_process_allows_less(make_mlp):
    mlp = make_mlp(512, 512, 512)
    features = torch.randn(1, N, 512)
    expected = estimate_sensitivity(features, mlp)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        value = estimate_sensitivity(features, mlp)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(value, expected)


@pytest.mark.parametrize("estimator", ["closed_form", "directional", "finite_difference"])
def test_any_batch_split_and_padding_gives_the_same_bits(make_mlp, estimator):
    mlp = make_mlp()
    counts = torch.tensor([63, 1, 17, 40, 63])
    features = torch.randn(5, 70, D)
    features[torch.arange(70) >= counts[:, None]] = torch.nan
    settings = {"estimator": estimator, "num_directions": 3}
    together = estimate_sensitivity(features, mlp, num_tokens_B=counts, **settings)
    for split in (1, 2, 3):
        parts = zip(features.split(split), counts.split(split), strict=True)
        apart = torch.cat([estimate_sensitivity(f, mlp, num_tokens_B=c, **settings) for f, c in parts])
        assert torch.equal(apart, together)
    for image, count in enumerate(counts.tolist()):
        alone = estimate_sensitivity(features[image : image + 1, :count], mlp, **settings)
        assert torch.equal(alone[0], together[image, :count])
        assert (together[image, count:] == 0).all()


def test_closed_form_at_the_size_of_a_model():
    """1024-4096-4096, 576 tokens: float32 against the Jacobians of a few tokens, and directional against literal."""
    mlp = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 4096))
    features = torch.randn(1, 576, 1024)
    value = estimate_sensitivity(features, mlp)[0]
    with torch.no_grad():
        w1, w2 = mlp[0].weight, mlp[2].weight
        pre = features[0, :3] @ w1.T + mlp[0].bias
        slope = 0.5 * (1 + torch.erf(pre / 2**0.5)) + pre * torch.exp(-pre.square() / 2) / (2 * torch.pi) ** 0.5
        jacobians = [(w2 * g) @ w1 for g in slope]
    expected = torch.stack([j.double().norm() for j in jacobians]) / 1024**0.5
    assert relative_error(value[:3].double(), expected) <= 1e-5
    part = features[:, :63]
    settings = {"num_directions": 2, "seed": 5}
    difference = estimate_sensitivity(part, mlp, estimator="finite_difference", **settings)[0]
    with torch.no_grad():
        literal = finite_difference_naive(part[0], mlp, draw_directions(2, 1024, seed=5))
    assert relative_error(difference, literal) <= 3e-4


def test_one_token_and_zero_features(make_mlp):
    mlp = make_mlp(dtype=torch.float64)
    one = torch.zeros(1, 1, D, dtype=torch.float64)
    assert relative_error(estimate_sensitivity(one, mlp)[0], closed_form_naive(one[0], mlp)) <= 1e-10
    dead = nn.Sequential(nn.Linear(D, 9), nn.ReLU(), nn.Linear(9, 5))
    nn.init.constant_(dead[0].bias, -1e6)
    assert (estimate_sensitivity(torch.randn(1, N, D), dead) == 0).all()


def test_directions_depend_on_their_arguments_alone():
    bank = draw_directions(64, D, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = draw_directions(64, D, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(bank, again)
    assert not torch.equal(bank, draw_directions(64, D, seed=2))
    assert torch.allclose(bank.norm(dim=-1), torch.ones(64))
    again.zero_()
    assert torch.equal(bank, draw_directions(64, D, seed=1))


@pytest.mark.parametrize(
    "linear",
    [
        nn.Linear(D, 8),
        nn.Sequential(nn.Linear(D, 9), nn.Linear(9, 8)),
        nn.Sequential(nn.Identity(), nn.Linear(D, 8), nn.Dropout()),
        ProjectorSpec.opaque(lambda x: 3 * x[:, :8] + 1),
        ProjectorSpec.opaque(nn.Sequential(nn.Linear(D, 9), nn.Linear(9, 9), nn.Linear(9, 8))),
    ],
)
@pytest.mark.parametrize("estimator", ["closed_form", "directional", "finite_difference"])
def test_linear_projectors_are_refused(linear, estimator):
    if as_projector_spec(linear).is_opaque and estimator == "closed_form":
        return
    with pytest.raises(ValueError, match=r"Jacobian is constant.*divprune, divprune_centered, coverage, feature_norm"):
        estimate_sensitivity(torch.zeros(1, N, D), linear, estimator=estimator, num_directions=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.randn(N, D)}, r"shape \(63, 60\), expected 3 axes BND.*\[None\]"),
        ({"features": torch.zeros(1, N, D, dtype=torch.int64)}, r"dtype torch.int64, expected a floating.*\.float\(\)"),
        ({"features": torch.randn(1, 0, D)}, "at least one element"),
        ({"features": torch.randn(1, N, D + 1)}, "width 61, expected 60"),
        ({"features": [1.0]}, "is a sequence, expected tensors with axes ND in it"),
        ({"estimator": "exact"}, "'exact', expected one of closed_form, directional, finite_difference"),
        ({"num_directions": 0}, "num_directions is 0, expected an integer of at least 1"),
        ({"step_size": 0.0}, "step_size is 0.0, expected a positive"),
        ({"num_tokens_B": torch.tensor([64])}, "num_tokens_B is 64 for image 0 of the batch, expected 1 to 63"),
        ({"num_tokens_B": torch.tensor([0])}, "num_tokens_B is 0 for image 0"),
        ({"num_tokens_B": torch.tensor([1, 2])}, r"num_tokens_B has shape \(2,\)"),
        ({"projector": ProjectorSpec.opaque(torch.tanh)}, "'closed_form' has no formula here.*estimator='directional'"),
        ({"projector": "mlp"}, "projector is a str"),
    ],
)
def test_errors_name_value_expectation_and_remedy(make_mlp, change, message):
    arguments = {"features": torch.randn(1, N, D), "projector": make_mlp(), **change}
    with pytest.raises(ValueError, match=message):
        estimate_sensitivity(arguments.pop("features"), arguments.pop("projector"), **arguments)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("estimator", ["closed_form", "directional", "finite_difference"])
def test_bad_numbers_name_their_image(make_mlp, bad, activation, estimator):
    features = torch.randn(3, N, D)
    features[2, 5, 7] = bad
    with pytest.raises(ValueError, match="features_BND of image 2 of the batch holds NaN or Inf"):
        estimate_sensitivity(features, make_mlp(activation=activation), estimator=estimator, num_directions=2)


def test_bad_weights_are_told_from_bad_features(make_mlp):
    mlp = make_mlp()
    with torch.no_grad():
        mlp[2].weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match="the sensitivity of image 0"):
        estimate_sensitivity(torch.randn(1, N, D), mlp)
