"""Recognition of projectors, their activations, and the cache of their constants."""

import gc

import pytest
import torch
from torch import nn

from zoo_ops import (
    SELECTORS,
    USES_SENSITIVITY,
    NormSpec,
    ProjectorSpec,
    as_projector_spec,
    estimate_sensitivity,
    preferred_estimator,
    require_informative,
)
from zoo_ops import constants as constants_module
from zoo_ops.activations import KNOWN_ACTIVATIONS, activation_derivative, identify_activation


@pytest.mark.parametrize("name", sorted(KNOWN_ACTIVATIONS))
def test_activations_are_known_by_their_values(name):
    function = KNOWN_ACTIVATIONS[name]
    assert identify_activation(lambda x: function(x)) == name
    points = torch.linspace(-6, 6, 1001, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(function(points).sum(), points)
    value = activation_derivative(name, points.detach().reshape(77, 13)).reshape(-1)
    assert torch.allclose(value, expected, rtol=1e-12, atol=1e-14)


def test_other_activations_are_unknown():
    assert identify_activation(None) == "identity"
    for other in (torch.tanh, nn.Softmax(dim=-1), nn.LeakyReLU(), nn.GLU(), lambda x: 0, nn.ELU()):
        assert identify_activation(other) is None
    with pytest.raises(ValueError, match="'tanh' is unknown"):
        activation_derivative("tanh", torch.zeros(3))


def test_transformers_activations_are_recognised():
    activations = pytest.importorskip("transformers.activations").ACT2FN
    expected = {
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "quick_gelu": "quick_gelu",
        "silu": "silu",
        "swish": "silu",
        "relu": "relu",
        "linear": "identity",
        "relu2": None,
    }
    assert {name: identify_activation(activations[name]) for name in expected} == expected


def test_modules_are_recognised(make_mlp):
    mlp = make_mlp()
    spec = as_projector_spec(mlp)
    assert (spec.linear_in, spec.activation, spec.linear_out) == tuple(mlp)
    assert spec.closed_form_obstacle is None
    assert as_projector_spec(spec) is spec
    nested = nn.Sequential(nn.LayerNorm(60), nn.Sequential(mlp[0], mlp[1], nn.Dropout()), mlp[2])
    spec = as_projector_spec(nested)
    assert spec.norm is not None
    assert (spec.norm.kind, spec.norm.eps, spec.linear_out) == ("layer", 1e-5, mlp[2])
    x = torch.randn(4, 7, 60)
    assert torch.allclose(spec(x), nested.eval()(x), atol=1e-6)
    rms = nn.Sequential(nn.RMSNorm(60), *mlp)
    assert torch.allclose(as_projector_spec(rms)(x), rms(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_project_runs_in_the_dtype_asked_for(make_mlp, dtype):
    mlp = make_mlp(dtype=torch.bfloat16)
    x = torch.randn(5, 60).bfloat16()
    for spec in (as_projector_spec(mlp), ProjectorSpec.opaque(mlp)):
        value = spec.project(x, dtype=dtype)
        assert value.dtype == (dtype or torch.bfloat16)
        if dtype is not None:
            double = nn.Sequential(nn.Linear(60, 89), nn.GELU(), nn.Linear(89, 70)).to(dtype)
            double.load_state_dict(mlp.state_dict())
            assert torch.allclose(value, double(x.to(dtype)), rtol=1e-5, atol=1e-6)


def test_subclasses_of_linear_are_opaque():
    class Adapted(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert as_projector_spec(nn.Sequential(Adapted(60, 9), nn.GELU(), nn.Linear(9, 5))).is_opaque


def test_preferred_estimator_falls_back(make_mlp):
    assert preferred_estimator(make_mlp()) == "closed_form"
    assert preferred_estimator(make_mlp(), "finite_difference") == "finite_difference"
    assert preferred_estimator(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))) == "directional"
    assert preferred_estimator(ProjectorSpec.opaque(torch.tanh)) == "directional"
    assert "Tanh is none of" in str(
        as_projector_spec(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))).closed_form_obstacle
    )


def test_linear_projectors_refuse_selectors_by_name():
    linear = nn.Linear(60, 8)
    assert as_projector_spec(linear).is_linear
    for selector in USES_SENSITIVITY:
        with pytest.raises(ValueError, match=f"selector '{selector}'.*constant.*use one of the selectors divprune"):
            require_informative(linear, selector)
    assert {"zoo", "zoo_centered", "zoo_coverage", "sensitivity"} == set(USES_SENSITIVITY)
    for selector in set(SELECTORS) - set(USES_SENSITIVITY):
        require_informative(linear, selector)
    assert not as_projector_spec(nn.Sequential(nn.RMSNorm(60), linear)).is_linear


def test_specs_that_do_not_fit_are_refused(make_mlp):
    first, activation, second = make_mlp()
    with pytest.raises(ValueError, match="num_patches is 7, expected a divisor of the projector's input width 60"):
        ProjectorSpec(first, activation, second, num_patches=7)
    with pytest.raises(ValueError, match="linear_out reads width 60, but linear_in gives 89"):
        ProjectorSpec(first, activation, first)
    with pytest.raises(ValueError, match=r"norm weight has shape \(60,\), expected \(15,\)"):
        ProjectorSpec(first, activation, second, norm=NormSpec("rms", torch.ones(60)), num_patches=4)
    with pytest.raises(ValueError, match="norm kind is 'batch'"):
        NormSpec("batch", None)
    with pytest.raises(ValueError, match=r"BatchNorm1d is no nn\.LayerNorm"):
        NormSpec.of(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="norm over 2 axes"):
        NormSpec.of(nn.LayerNorm((3, 4)))
    with pytest.raises(ValueError, match="linear_in is None"):
        ProjectorSpec(None, None, None)


@pytest.fixture
def count_builds(monkeypatch):
    constants_module.clear_constants()
    builds = []
    compute = constants_module._compute

    def counted(*arguments):
        builds.append(arguments)
        return compute(*arguments)

    monkeypatch.setattr(constants_module, "_compute", counted)
    return builds


def test_constants_are_computed_once_per_model(make_mlp, count_builds):
    mlp, features = make_mlp(), torch.randn(1, 9, 60)
    for _ in range(3):
        estimate_sensitivity(features, mlp)
        estimate_sensitivity(features, ProjectorSpec(*mlp))
    assert len(count_builds) == 1


@pytest.mark.parametrize(
    "update",
    [
        lambda mlp: mlp[0].weight.mul_(2),
        lambda mlp: mlp[0].weight[3].zero_(),
        lambda mlp: mlp[2].weight.data.mul_(2),
        lambda mlp: setattr(mlp[2].weight, "data", torch.randn(70, 89)),
        lambda mlp: mlp[0].bias.add_(1),
        lambda mlp: mlp.load_state_dict({name: value * 3 for name, value in mlp.state_dict().items()}),
        lambda mlp: setattr(mlp[0], "weight", nn.Parameter(torch.randn(89, 60))),
    ],
)
def test_updated_weights_are_never_served_from_the_cache(make_mlp, update):
    mlp, features = make_mlp(), torch.randn(1, 9, 60)
    before = estimate_sensitivity(features, mlp)
    with torch.no_grad():
        update(mlp)
    after = estimate_sensitivity(features, mlp)
    constants_module.clear_constants()
    assert torch.equal(after, estimate_sensitivity(features, mlp))
    assert not torch.equal(after, before)


def test_weights_made_in_inference_mode(make_mlp):
    features = torch.randn(1, 9, 60)
    with torch.inference_mode():
        mlp = make_mlp()
        before = estimate_sensitivity(features, mlp)
        mlp[2].weight[0, 0] += 1
        after = estimate_sensitivity(features, mlp)
        constants_module.clear_constants()
        assert torch.equal(after, estimate_sensitivity(features, mlp))
    assert not torch.equal(after, before)


def test_dead_models_leave_the_cache(make_mlp):
    constants_module.clear_constants()
    features = torch.randn(1, 9, 60)
    for _ in range(5):
        mlp = make_mlp()
        value = estimate_sensitivity(features, mlp)
        constants_module.clear_constants()
        assert torch.equal(value, estimate_sensitivity(features, mlp))
        del mlp
        gc.collect()
        assert not constants_module._CACHE


def test_norms_of_the_same_weights_do_not_share_constants(make_mlp):
    first, activation, second = make_mlp(dtype=torch.float64)
    weight = torch.rand(60, dtype=torch.float64)
    features = torch.randn(1, 9, 60, dtype=torch.float64)
    values = [
        estimate_sensitivity(features, ProjectorSpec(first, activation, second, norm=norm, num_patches=patches))
        for norm, patches in (
            (NormSpec("layer", weight, None, per_patch=False), 1),
            (NormSpec("rms", weight, None, per_patch=False), 1),
            (None, 1),
            (NormSpec("rms", None, None), 4),
            (NormSpec("rms", None, None), 2),
        )
    ]
    for i, value in enumerate(values):
        assert all(not torch.allclose(value, other) for other in values[:i])
