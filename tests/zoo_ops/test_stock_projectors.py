"""Sensitivity of the projectors that Transformers ships, against the Jacobians of the stock modules themselves."""

import pytest
import torch
from torch import nn

from zoo_ops import NormSpec, ProjectorSpec, as_projector_spec, draw_directions, estimate_sensitivity
from zoo_ops.naive import closed_form_naive, directional_naive

PATCHES, WIDTH, WIDTH_OUT, N = 4, 20, 28, 17

qwen2_vl = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")
qwen2_5_vl = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
qwen3_vl = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
internvl = pytest.importorskip("transformers.models.internvl.modeling_internvl")
gemma3 = pytest.importorskip("transformers.models.gemma3.modeling_gemma3")


def randomised(module):
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name or "ln_q" in name else 0.0))
    return module.double().eval()


def qwen2():
    merger = randomised(qwen2_vl.PatchMerger(WIDTH_OUT, WIDTH))
    norm = NormSpec("layer", merger.ln_q.weight, merger.ln_q.bias, merger.ln_q.eps)
    return merger, ProjectorSpec(*merger.mlp, norm=norm, num_patches=PATCHES)


def qwen2_5():
    merger = randomised(qwen2_5_vl.Qwen2_5_VLPatchMerger(WIDTH_OUT, WIDTH))
    norm = NormSpec("rms", merger.ln_q.weight, eps=merger.ln_q.variance_epsilon)
    return merger, ProjectorSpec(*merger.mlp, norm=norm, num_patches=PATCHES)


def qwen3(use_postshuffle_norm):
    config = qwen3_vl.Qwen3VLVisionConfig(hidden_size=WIDTH, spatial_merge_size=2, out_hidden_size=WIDTH_OUT)
    merger = randomised(qwen3_vl.Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=use_postshuffle_norm))
    norm = NormSpec.of(merger.norm, per_patch=not use_postshuffle_norm)
    spec = ProjectorSpec(merger.linear_fc1, merger.act_fn, merger.linear_fc2, norm=norm, num_patches=PATCHES)
    return merger, spec


def intern():
    config = internvl.InternVLConfig(
        vision_config={"hidden_size": WIDTH}, text_config={"model_type": "qwen2", "hidden_size": WIDTH_OUT}
    )
    projector = randomised(internvl.InternVLMultiModalProjector(config))
    norm = NormSpec.of(projector.layer_norm)
    return projector, ProjectorSpec(projector.linear_1, projector.act, projector.linear_2, norm=norm)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(qwen2, id="qwen2_vl"),
        pytest.param(qwen2_5, id="qwen2_5_vl"),
        pytest.param(lambda: qwen3(False), id="qwen3_vl"),
        pytest.param(lambda: qwen3(True), id="qwen3_vl_postshuffle"),
        pytest.param(intern, id="internvl"),
    ],
)
def test_closed_form_is_the_jacobian_norm_of_the_stock_module(make):
    module, spec = make()
    features = torch.randn(N, PATCHES * WIDTH, dtype=torch.float64) * 2 + torch.randn(N, 1, dtype=torch.float64)

    def forward(rows):
        # Mergers read patches one by one, and give a row for every PATCHES of them.
        whole = spec.norm is None or not spec.norm.per_patch
        return module(rows if whole else rows.reshape(-1, WIDTH)).reshape(rows.shape[0], -1)

    with torch.no_grad():
        assert torch.allclose(spec(features), forward(features), rtol=1e-5, atol=1e-6)
    expected = closed_form_naive(features, forward)
    value = estimate_sensitivity(features[None], spec)[0]
    # Transformers' RMSNorm computes in float32 whatever it is given.
    tolerance = 1e-6 if make is qwen2_5 else 1e-10
    assert ((value - expected) / expected).abs().max() <= tolerance


def test_a_projector_of_another_form_is_differentiated_forward():
    """Gemma 3: RMSNorm and a matrix product, on tokens that are pooled already."""
    norm = randomised(gemma3.Gemma3RMSNorm(WIDTH))
    matrix = torch.randn(WIDTH, WIDTH_OUT, dtype=torch.float64)
    spec = ProjectorSpec.opaque(lambda rows: norm(rows) @ matrix)
    features = torch.randn(N, WIDTH, dtype=torch.float64)
    value = estimate_sensitivity(features[None], spec, estimator="directional", num_directions=9)[0]
    expected = directional_naive(features, spec, draw_directions(9, WIDTH, seed=0).double())
    # Transformers' RMSNorm computes in float32 whatever it is given.
    assert ((value - expected) / expected).abs().max() <= 1e-5


def test_the_projector_of_llava_is_recognised_by_its_parts():
    llava = pytest.importorskip("transformers.models.llava.modeling_llava")
    config = llava.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": WIDTH, "num_attention_heads": 4},
        text_config={"model_type": "llama", "hidden_size": WIDTH_OUT, "num_attention_heads": 2},
    )
    projector = randomised(llava.LlavaMultiModalProjector(config))
    mlp = nn.Sequential(projector.linear_1, projector.act, projector.linear_2)
    features = torch.randn(N, WIDTH, dtype=torch.float64)
    assert as_projector_spec(projector).is_opaque
    value = estimate_sensitivity(features[None], mlp)[0]
    expected = closed_form_naive(features, projector)
    assert ((value - expected) / expected).abs().max() <= 1e-10
