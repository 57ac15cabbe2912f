"""The centred selectors of models that merge patches: they compare the tower's features, not the projected ones."""

import pytest
import torch

from pipeline.budget import Budget
from pipeline.prune.select import SelectSettings, select_tokens
from tests.families.models import TINY
from zoo_ops import CENTERED, estimate_sensitivity
from zoo_ops.naive import rank_naive

MERGING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def test_the_qwen_families_compare_patches(case):
    assert {name for name in TINY if case(name).opened[1].centring == "patches"} == set(MERGING)


@pytest.mark.parametrize("name", MERGING)
@pytest.mark.parametrize("selector", CENTERED)
def test_the_ranking_is_that_of_the_literal_twin(case, name, selector):
    case = case(name)
    settings = SelectSettings(Budget("all"), selector, centring=case.opened[1].centring)
    image = min(case.encoded, key=lambda one: len(one.features_ND))
    (selection,) = select_tokens([image], ["0" * 64], case.encoder.projector, settings)
    features = image.features_ND.double()
    width = features.shape[1] // 4
    means = sum(features[:, patch * width : (patch + 1) * width] for patch in range(4)) / 4
    sensitivity = estimate_sensitivity(features[None], case.encoder.projector)[0]
    picks, gains = rank_naive(
        image.projected_NO.double(), sensitivity, max_tokens=len(means), selector=selector, patch_means_Nd=means
    )
    assert torch.allclose(selection.gain_K.double(), torch.tensor(gains).double(), atol=1e-4)
    assert selection.ranking_K[:8].tolist() == picks[:8]


@pytest.mark.parametrize("selector", CENTERED)
def test_batches_of_other_images_do_not_change_the_ranking(case, selector):
    case = case("qwen2_5_vl")
    settings = SelectSettings(Budget("all"), selector, centring="patches")
    ids = [f"{number:064x}" for number in range(len(case.encoded))]
    together = select_tokens(case.encoded, ids, case.encoder.projector, settings)
    for image, image_id, expected in zip(case.encoded, ids, together, strict=True):
        (alone,) = select_tokens([image], [image_id], case.encoder.projector, settings)
        assert torch.equal(alone.ranking_K, expected.ranking_K)
        assert torch.equal(alone.gain_K, expected.gain_K)


@pytest.mark.parametrize("name", MERGING)
def test_the_patches_of_a_token_are_those_that_the_merger_joins(case, name):
    """As many values as the tower's width, a token's patches one behind the other in what the merger reads."""
    case = case(name)
    assert case.encoder.projector.num_patches == 4
    assert case.encoded[0].features_ND.shape[1] == 4 * case.opened[0].config.vision_config.hidden_size
