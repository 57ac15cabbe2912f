"""The select stage adds nothing to zoo_ops but batching; here: padding and batches change nothing."""

import torch
from torch import nn

from pipeline.budget import Budget
from pipeline.families.base import EncodedImage, Segment
from pipeline.prune.select import SelectSettings, image_seed, select_tokens
from zoo_ops import as_projector_spec

PROJECTOR = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 16)).requires_grad_(False)


def images(lengths: list[int]) -> list[EncodedImage]:
    made = []
    for n in lengths:
        features = torch.randn(n, 12, generator=torch.Generator().manual_seed(n))
        made.append(EncodedImage(features, PROJECTOR(features), [Segment(0, 0, 1, n)], (1, n, 1)))
    return made


def test_ragged_batches_equal_single_images():
    lengths = [9, 30, 17, 30]
    ids = [f"{n:064x}" for n in range(4)]
    for selector in ("zoo", "feature_norm", "random"):
        settings = SelectSettings(Budget("ratio", 0.5), selector=selector)
        together = select_tokens(images(lengths), ids, as_projector_spec(PROJECTOR), settings)
        for image, image_id, got in zip(images(lengths), ids, together, strict=True):
            (alone,) = select_tokens([image], [image_id], as_projector_spec(PROJECTOR), settings)
            assert torch.equal(alone.ranking_K, got.ranking_K)
            assert torch.equal(alone.gain_K, got.gain_K)
            assert len(got.ranking_K) == (len(image.features_ND) + 1) // 2
            assert len(got.sensitivity_N) == len(image.features_ND)


def test_an_images_seed_is_its_own():
    assert image_seed("a", 0) == image_seed("a", 0)
    assert len({image_seed(i, s) for i in "abc" for s in (0, 1)}) == 6
    assert all(0 <= image_seed(i, 0) < 2**63 for i in "abcdefgh")
