"""Properties of the ranking that hold for any image: hypothesis looks for one where they do not."""

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, given, settings

from zoo_ops import SELECTORS, rank_tokens

settings.register_profile(
    "ops", deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("ops")


@st.composite
def batches(draw):
    """Features (with duplicates and zeros among them), sensitivities, counts, groups and seeds of a few images."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    images, tokens, width = draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 19))
    z = torch.randn(images, tokens, width, generator=generator)
    s = torch.rand(images, tokens, generator=generator)
    if draw(st.booleans()):
        z = z[:, torch.randint(tokens, (tokens,), generator=generator)]
        s = (s * 4).floor()
    if draw(st.booleans()):
        z[:, :: draw(st.integers(1, 5))] = 0
    counts = torch.randint(1, tokens + 1, (images,), generator=generator)
    groups = draw(st.sampled_from([None, 1, 2, 5]))
    return {
        "z": z,
        "s": s,
        "attention_BN": s,
        "patch_means_BNd": z[:, :, : -(-width // 2)] if draw(st.booleans()) else None,
        "max_tokens": draw(st.integers(1, tokens)),
        "selector": draw(st.sampled_from(SELECTORS)),
        "num_tokens_B": counts if draw(st.booleans()) else None,
        "groups_BN": None if groups is None else torch.randint(groups, (images, tokens), generator=generator),
        "seeds_B": torch.randint(1 << 60, (images,), generator=generator),
    }


def rank(batch, **change):
    arguments = {**batch, **change}
    return rank_tokens(arguments.pop("z"), arguments.pop("s"), **arguments)


@given(batches())
def test_indices_are_unique_and_in_range(batch):
    ranking = rank(batch)
    images, tokens, _ = batch["z"].shape
    counts = [tokens] * images if batch["num_tokens_B"] is None else batch["num_tokens_B"].tolist()
    for picks, gains, count in zip(ranking.indices_BK.tolist(), ranking.gains_BK.tolist(), counts, strict=True):
        kept = min(count, batch["max_tokens"])
        assert len(set(picks[:kept])) == kept
        assert all(0 <= pick < count for pick in picks[:kept])
        assert all(pick == -1 for pick in picks[kept:])
        assert all(gain >= 0 for gain in gains[:kept])
        assert all(gain == -1 for gain in gains[kept:])


@given(batches())
def test_a_ranking_is_a_prefix_of_every_longer_one(batch):
    k = batch["max_tokens"]
    shorter, longer = rank(batch), rank(batch, max_tokens=batch["z"].shape[1])
    assert torch.equal(shorter.indices_BK, longer.indices_BK[:, :k])
    assert torch.equal(shorter.gains_BK, longer.gains_BK[:, :k])


@given(batches())
def test_gains_do_not_increase_within_a_group_from_its_second_pick(batch):
    ranking = rank(batch)
    images, tokens, _ = batch["z"].shape
    groups = torch.zeros(images, tokens, dtype=torch.int64) if batch["groups_BN"] is None else batch["groups_BN"]
    for image in range(images):
        picks = ranking.indices_BK[image]
        picks = picks[picks >= 0]
        for group in groups[image].unique():
            gains = ranking.gains_BK[image, : len(picks)][groups[image, picks] == group]
            assert (gains[1:].diff() <= 0).all()


@given(batches(), st.integers(1, 3))
def test_any_batch_split_gives_the_same_bits(batch, split):
    together = rank(batch)
    per_image = ("z", "s", "attention_BN", "patch_means_BNd", "num_tokens_B", "groups_BN", "seeds_B")
    parts = []
    for start in range(0, batch["z"].shape[0], split):
        cut = {name: batch[name][start : start + split] for name in per_image if batch[name] is not None}
        parts.append(rank({**batch, **cut}))
    assert torch.equal(torch.cat([part.indices_BK for part in parts]), together.indices_BK)
    assert torch.equal(torch.cat([part.gains_BK for part in parts]), together.gains_BK)


@given(batches())
def test_prefixes_hold_equal_shares_of_the_groups(batch):
    if batch["groups_BN"] is None:
        return
    ranking = rank(batch)
    for image in range(batch["z"].shape[0]):
        count = batch["z"].shape[1] if batch["num_tokens_B"] is None else int(batch["num_tokens_B"][image])
        groups = batch["groups_BN"][image, :count]
        ids, sizes = groups.unique(return_counts=True)
        picks = ranking.indices_BK[image]
        picks = picks[picks >= 0]
        for k in range(1, min(len(picks), len(ids) * int(sizes.min())) + 1):
            held = [(groups[picks[:k]] == group).sum().item() for group in ids]
            assert min(held) >= k // len(ids)
            assert max(held) <= -(-k // len(ids))


@given(batches(), st.integers(0, 2**32))
def test_permuting_the_tokens_permutes_the_ranking_up_to_ties(batch, seed):
    if batch["selector"] in ("random", "uniform_grid"):
        return
    means = None if batch["patch_means_BNd"] is None else batch["patch_means_BNd"].double()
    s = batch["s"].double()
    batch = {
        **batch,
        "z": batch["z"].double(),
        "s": s,
        "attention_BN": s,
        "patch_means_BNd": means,
        "num_tokens_B": None,
    }
    order = torch.randperm(batch["z"].shape[1], generator=torch.Generator().manual_seed(seed))
    groups = None if batch["groups_BN"] is None else batch["groups_BN"][:, order]
    there = {"z": batch["z"][:, order], "s": s[:, order], "attention_BN": s[:, order], "groups_BN": groups}
    plain = rank(batch)
    moved = rank(batch, **there, patch_means_BNd=None if means is None else means[:, order])
    for image in range(batch["z"].shape[0]):
        gains, moved_gains = plain.gains_BK[image], moved.gains_BK[image]
        picks, moved_picks = plain.indices_BK[image], order[moved.indices_BK[image]]
        for t in range(len(picks)):
            if picks[t] != moved_picks[t]:
                # The first difference must be a tie; what follows then is another, equally right, ranking.
                assert abs(float(gains[t] - moved_gains[t])) <= 1e-6
                break
            assert abs(float(gains[t] - moved_gains[t])) <= 1e-6
