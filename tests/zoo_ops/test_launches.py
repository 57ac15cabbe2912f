"""What the operations launch on a GPU and wait for there, counted on a device that is the CPU."""

import pytest
import torch

from benchmarks.counted_device import Counted, counted_call
from zoo_ops import SELECTORS, Findings, Ranking, prepare_estimator, rank_tokens
from zoo_ops import greedy as greedy_module
from zoo_ops import scores as scores_module

GREEDY = ("zoo", "zoo_centered", "divprune", "divprune_centered", "feature_norm")
LAUNCHES_A_PICK = 3
O = 24  # noqa: E741


@pytest.fixture
def counted():
    counted = Counted()
    with counted.device() as device:
        counted.to = lambda tensor: tensor.to(device)
        yield counted


def ragged(images: int, most: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features of images of several sizes, and a score for each token."""
    sizes = [most - 3 * (image % 4) for image in range(images)]
    return [torch.randn(size, O) for size in sizes], torch.rand(images, most)


def rank(counted, features, scores, **settings) -> tuple[Ranking, dict]:
    """A ranking on the device, and what it did there."""
    on_device, scores = [counted.to(rows) for rows in features], counted.to(scores)
    seeds = torch.arange(len(features))
    settings = {"attention_BN": scores, "seeds_B": seeds, "findings": Findings(), **settings}
    rankings: list[Ranking] = []
    found = counted_call(lambda: rankings.append(rank_tokens(on_device, scores, **settings)), counted)
    return rankings[0], found


@pytest.mark.parametrize("selector", GREEDY)
@pytest.mark.parametrize("images", [1, 8])
@pytest.mark.parametrize("groups", [1, 5])
def test_a_pick_is_three_launches_for_a_whole_batch(counted, selector, images, groups):
    features, scores = ragged(images, 60)
    group_ids = torch.arange(60).expand(images, -1) % groups
    settings = {"selector": selector, "groups_BN": None if groups == 1 else group_ids}
    few = rank(counted, features, scores, max_tokens=2 * groups, **settings)[1]
    many = rank(counted, features, scores, max_tokens=4 * groups, **settings)[1]
    assert many["launches"] - few["launches"] == 2 * LAUNCHES_A_PICK
    assert many["waits"] == few["waits"] == 0, many["waits_by_cause"]


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("grouped", [False, True])
def test_no_ranking_waits_and_each_has_the_bits_of_the_cpu(counted, selector, grouped, monkeypatch):
    monkeypatch.setattr(greedy_module, "MIRROR_BLOCKS", 1)  # a GPU computes the products of an image in one block
    features, scores = ragged(4, 63)
    groups = torch.randint(3, (4, 63)) if grouped else None
    settings = {"selector": selector, "groups_BN": groups, "max_tokens": 40}
    ranking, found = rank(counted, features, scores, **settings)
    assert found["waits"] == 0, found["waits_by_cause"]
    expected = rank_tokens(features, scores, attention_BN=scores, seeds_B=torch.arange(4), **settings)
    assert torch.equal(ranking.indices_BK.cpu(), expected.indices_BK)
    gains = ranking.gains_BK.cpu()
    assert torch.equal(gains, expected.gains_BK)


def test_images_beyond_the_matrix_wait_no_more(counted, monkeypatch):
    monkeypatch.setattr(scores_module, "MATRIX_TOKENS_OF_GPU", 10)
    features, scores = ragged(3, 30)
    ranking, found = rank(counted, features, scores, max_tokens=12)
    assert found["waits"] == 0
    assert torch.equal(ranking.indices_BK.cpu(), rank_tokens(features, scores, max_tokens=12).indices_BK)


@pytest.mark.parametrize("estimator", ["closed_form", "directional", "finite_difference"])
def test_a_prepared_estimator_does_not_wait(counted, make_mlp, estimator):
    mlp = make_mlp(O)
    features = [rows for rows in ragged(4, 50)[0]]
    settings = {"estimator": estimator, "num_directions": 3}
    expected = prepare_estimator(mlp, features[0], **settings)(features)
    on_device = [counted.to(rows) for rows in features]
    prepared = prepare_estimator(mlp.to("privateuseone"), on_device[0], **settings)
    found = counted_call(lambda: prepared(on_device, findings=Findings()), counted)
    assert found["waits"] == 0, found["waits_by_cause"]
    assert torch.equal(prepared(on_device).cpu(), expected)


@pytest.mark.parametrize("selector", [name for name in SELECTORS if name not in ("random", "uniform_grid")])
def test_findings_name_the_image_that_is_spoilt_and_the_others_keep_their_ranking(selector):
    features, scores = ragged(3, 20)
    whole = rank_tokens(features, scores, max_tokens=8, selector=selector, attention_BN=scores)
    features[1][3, 2] = torch.nan
    findings = Findings()
    ranking = rank_tokens(features, scores, max_tokens=8, selector=selector, attention_BN=scores, findings=findings)
    flags = findings.flags().tolist()
    with pytest.raises(ValueError, match="projected_BNO of image 1 of the batch holds NaN or Inf"):
        findings.raise_first(flags)
    findings.raise_first(flags, ignoring=[1])
    for image in (0, 2):
        assert torch.equal(ranking.indices_BK[image], whole.indices_BK[image])
    assert (ranking.indices_BK[1] < len(features[1])).all()


def test_a_sequence_is_a_padded_batch(make_mlp):
    features, scores = ragged(4, 40)
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    counts = torch.tensor([len(rows) for rows in features])
    one = rank_tokens(features, scores, max_tokens=20)
    other = rank_tokens(padded, scores, max_tokens=20, num_tokens_B=counts)
    assert torch.equal(one.indices_BK, other.indices_BK)
    assert torch.equal(one.gains_BK, other.gains_BK)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([], "is an empty sequence"),
        ([torch.rand(3, 4), torch.rand(3, 5)], "rows of 5 .* and of 4"),
        ([torch.rand(3, 4), torch.rand(3, 4).double()], "float64 on cpu and of 4 torch.float32"),
        ([torch.rand(2, 3, 4)], "expected tensors with axes ND"),
    ],
)
def test_a_sequence_that_is_none_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        rank_tokens(features, None, max_tokens=1, selector="divprune")
