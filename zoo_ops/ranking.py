"""One ordered ranking of an image's tokens: the selection at every budget is a prefix of it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_ops.grid import grid_order
from zoo_ops.precision import full_float32
from zoo_ops.scores import Given, Picks, Segment, scored_picks
from zoo_ops.selectors import POSITIONAL, SELECTORS, USES_ATTENTION, USES_SEEDS, USES_SENSITIVITY
from zoo_ops.transfer import upload
from zoo_ops.validate import Findings, all_finite, check_finite, check_floating, check_integer, image_rows


class Ranking(NamedTuple):
    """Tokens in pick order.

    indices_BK: (B, K) int64, positions in the image's token sequence, -1 behind the last token of a short row.
    gains_BK: (B, K) float32, the score at which each pick was taken, -1 where the index is.
    """

    indices_BK: Tensor
    gains_BK: Tensor


@torch.no_grad()
def rank_tokens(
    projected_BNO: Tensor | Sequence[Tensor],
    sensitivity_BN: Tensor | None,
    *,
    max_tokens: int,
    selector: str = "zoo",
    num_tokens_B: Tensor | None = None,
    groups_BN: Tensor | None = None,
    seeds_B: Tensor | None = None,
    positions_BNC: Tensor | None = None,
    attention_BN: Tensor | None = None,
    patch_means_BNd: Tensor | None = None,
    findings: Findings | None = None,
) -> Ranking:
    """Ranking of up to `max_tokens` tokens of each image; its first k entries are the selection at budget k.

        w_i = (s_i - min s) / (max s - min s)               all ones when max = min
        first pick   argmax_i w_i
        next picks   argmax_i  w_i * min_{j picked} (1 - cos(z_i, z_j)),  never a token twice
        gain_t       the score at which pick t was taken    (non-increasing from t = 2 on)

    selector:
        zoo                as above (arXiv 2509.24837, section 3)
        zoo_centered       cosines of z less its mean; w_i also times g~_i, the min-max of g_i, minus the mean raw
                           cosine to the other tokens (Cen-Prune, arXiv 2608.30263, equations 3 to 7 and B.4)
        divprune           w = 1; first pick: the largest distance to its nearest neighbour, 1 when there is no other
                           (arXiv 2503.02175)
        divprune_centered  w = g~; cosines as of zoo_centered; first pick as of divprune, by them (Cen-Prune)
        coverage           every pick argmax_i  (1 / N) sum_u max(0, cos(z_u, z_i) - covered_u), u over all tokens and
                           covered_u = max(0, max_{j picked} cos(z_u, z_j)) (facility location; SCOPE, arXiv 2510.24214)
        zoo_coverage       as coverage, times s_i / max s, where SCOPE has the attention of the class token
        cls_attention      by attention_BN alone, gain its min-max
        feature_norm       as zoo, with ||z_i|| in place of s_i: the control that shows what s adds
        sensitivity        by s alone, gain w_i
        random             without replacement, drawn on the CPU from seeds_B
        uniform_grid       evenly spread over the positions, every prefix of the order too
    The last two have no score: their gain is the share of the tokens that was still free at the pick. The coverages are
    non-increasing from t = 1 on.

    projected_BNO: z, (B, N, O), any floating dtype, or a sequence of B tensors (N_b, O), N the largest of the N_b.
    sensitivity_BN: s, (B, N); None for a selector without it.
    num_tokens_B: (B,) integers, valid tokens of each image; those beyond are never read and may hold anything.
    groups_BN: (B, N) integers; tokens of one group id are weighed and ranked among themselves, the groups interleaved
    round-robin by ascending id, exhausted ones skipped; any prefix k holds k // groups of each, give or take one.
    Tokens of group -1 are left out. Best on the CPU, whatever device z is on: it is read there.
    seeds_B: (B,) int64, for `random`: one seed per image, taken from the image's id alone, is what makes its ranking
    the same in every batch, shard and run.
    positions_BNC: (B, N, 1 or 2) coordinates of the tokens (row, column), for `uniform_grid`; without it, the index.
    attention_BN: (B, N), for `cls_attention`; see `class_attention`.
    patch_means_BNd: (B, N, d), for the centred selectors on models that merge patches into a token: the tower's
    features before the merger, averaged over the patches of a token. With them, x these features within a group,
        y = x / sigma          sigma the standard deviation of each dimension; 0 in dimensions that do not vary
        D_ij = 1 - cos(y_i - mean y, y_j - mean y),   g_i = - mean_{j != i} cos(y_i, y_j)
        g~_i = sigmoid((g_i - mean g) / sd g)         1/2 where all g are equal
    take the place of the distances and of g~ above (Cen-Prune, appendix A.3 and A.4, equations 9, 10 and 12; its small
    constants beside sigma and sd are left out).
    findings: is told of NaN and Inf in place of a ValueError; with it, and with groups, counts, seeds and positions on
    the CPU, the call does not wait for a GPU. The ranking of an image of which something is found means nothing.
    Returns Ranking(indices_BK int64, gains_BK float32), K = max_tokens; rows of images with fewer tokens end in -1.

    Ties go to the smaller index. Two tokens whose cosine distance is below 1e-6 (rounding, in float32) count as
    duplicates, at distance 0, and sensitivities that differ by no more than 1e-6 of the largest count as equal.
    Similarities are float32 (float64 for float64 features), no TF32. The ranking of an image depends on its own valid
    tokens only, not on the batch, its padding or max_tokens.
    Memory beyond the arguments: one image's tokens in float32, and N x N distances of images or groups side by side, as
    many as fit 64 MiB on the CPU and 2 GiB elsewhere, but those of one in any case. Above N = 4,096 on the CPU and
    16,384 elsewhere each pick computes the distances that it needs; the coverages keep the matrix at any size.
    Raises ValueError: max_tokens beyond the padded N, wrong shapes, unknown selector, what the selector needs missing,
    NaN or Inf in a valid token (names the image).
    """
    projected = image_rows(projected_BNO, "projected_BNO", num_tokens_B)
    counts = [rows.shape[0] for rows in projected]
    width = projected_BNO.shape[1] if isinstance(projected_BNO, Tensor) else max(counts)
    given = Given(projected, sensitivity_BN, attention_BN, patch_means_BNd)
    _check_arguments(given, width, max_tokens, selector, groups_BN, seeds_B, positions_BNC)
    groups_BN = None if groups_BN is None else groups_BN.cpu()
    segments = [_segments(image, count, groups_BN, max_tokens) for image, count in enumerate(counts)]
    flat = [segment for of_image in segments for segment in of_image]
    positions_T = torch.cat([*map(_positions, flat), torch.tensor([-1])])
    device = projected[0].device
    with full_float32():
        if selector in POSITIONAL:
            check_finite([all_finite(rows) for rows in projected], "projected_BNO", findings=findings)
            seeds_B = seeds_B if selector == "random" else None
            ranked = [_positional(segment, counts[segment.image], seeds_B, positions_BNC) for segment in flat]
            ranking = _dealt_out(segments, ranked, positions_T, max_tokens)
            return Ranking(upload(ranking.indices_BK, device), upload(ranking.gains_BK, device))
        positions_T = upload(positions_T, device)
        ranked = scored_picks(_moved(flat, positions_T), given, selector, findings)
        return _dealt_out(segments, ranked, positions_T, max_tokens)


def _positions(segment: Segment) -> Tensor:
    """Positions of a segment's tokens in the image, where these are known."""
    run = segment.tokens
    return torch.arange(run.start, run.stop) if isinstance(run, slice) else run


def _moved(segments: Sequence[Segment], positions_T: Tensor) -> list[Segment]:
    """The segments with their positions taken from `positions_T`, which lie on the device."""
    moved, begin = [], 0
    for segment in segments:
        of_segment = positions_T[begin : begin + segment.size]
        moved.append(segment if isinstance(segment.tokens, slice) else segment._replace(tokens=of_segment))
        begin += segment.size
    return moved


def _dealt_out(
    segments: Sequence[Sequence[Segment]], ranked: Sequence[Picks], positions_T: Tensor, max_tokens: int
) -> Ranking:
    """The ranking of each image, the picks of its segments in turn.

    segments: of each image.  ranked: picks of all of them, in their order.  positions_T: of all their tokens in the
    image, and -1 behind.
    """
    starts, done = [], 0
    for picks in ranked:
        rows, width = picks.tokens_RK.shape
        starts += [done + row * width for row in range(rows)]
        done += rows * width
    # For each entry of the ranking: its place among all picks, and where the positions of its segment begin.
    places_2BK = torch.empty(2, len(segments), max_tokens, dtype=torch.int64)
    places_2BK[0], places_2BK[1] = done, positions_T.shape[0] - 1
    numbers, begin = iter(starts), 0
    for image, of_image in enumerate(segments):
        parts = []
        for segment in of_image:
            start = next(numbers)
            picks_K = torch.arange(start, start + segment.picks)
            parts.append(torch.stack([picks_K, torch.full_like(picks_K, begin)]))
            begin += segment.size
        if parts:
            places_2K = torch.cat(parts, dim=1)
            if len(parts) > 1:
                places_2K = places_2K[:, _round_robin(tuple(segment.picks for segment in of_image))]
            places_2BK[:, image, : places_2K.shape[1]] = places_2K
    places_2BK = upload(places_2BK, positions_T.device)
    tokens_F = torch.cat([*(picks.tokens_RK.flatten() for picks in ranked), positions_T.new_zeros(1)])
    none = torch.full((1,), -1.0, device=positions_T.device)
    gains_F = torch.cat([*(picks.gains_RK.flatten() for picks in ranked), none])
    return Ranking(positions_T[tokens_F[places_2BK[0]] + places_2BK[1]], gains_F[places_2BK[0]])


def _check_arguments(
    given: Given,
    width: int,
    max_tokens: int,
    selector: str,
    groups_BN: Tensor | None,
    seeds_B: Tensor | None,
    positions_BNC: Tensor | None,
) -> None:
    batch = len(given.projected)
    if selector not in SELECTORS:
        raise ValueError(f"selector is {selector!r}, expected one of {', '.join(SELECTORS)}")
    check_integer(max_tokens, "max_tokens", 1)
    if max_tokens > width:
        raise ValueError(
            f"max_tokens is {max_tokens}, expected at most {width}, the number of tokens in projected_BNO; "
            f"pass max_tokens={width} to rank them all"
        )
    for name, tensor, needed, source in (
        ("sensitivity_BN", given.sensitivity_BN, selector in USES_SENSITIVITY, "estimate_sensitivity"),
        ("attention_BN", given.attention_BN, selector in USES_ATTENTION, "class_attention"),
    ):
        if needed and tensor is None:
            raise ValueError(f"{name} is None, but selector {selector!r} needs it; see {source}")
        if needed and tensor is not None:
            check_floating(tensor, name, "BN")
            _check_device(tensor, name, given.projected[0])
    if selector in USES_SEEDS and seeds_B is None:
        raise ValueError(
            f"seeds_B is None, but selector {selector!r} needs a seed per image; take it from the image id"
        )
    per_token: tuple[int, ...] = (batch, width)
    arguments = {"sensitivity_BN": (given.sensitivity_BN, per_token), "attention_BN": (given.attention_BN, per_token)}
    arguments |= {"groups_BN": (groups_BN, per_token), "seeds_B": (seeds_B, (batch,))}
    for name, (tensor, shape) in arguments.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {shape} for projected_BNO of {batch} images of "
                f"up to {width} tokens; pass one value per {'image' if name == 'seeds_B' else 'token'}"
            )
        if tensor is not None and name in ("groups_BN", "seeds_B") and tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected integers; convert it with .long()")
    if given.patch_means_BNd is not None:
        check_floating(given.patch_means_BNd, "patch_means_BNd", "BNd")
        _check_device(given.patch_means_BNd, "patch_means_BNd", given.projected[0])
        if tuple(given.patch_means_BNd.shape[:2]) != per_token:
            raise ValueError(
                f"patch_means_BNd has shape {tuple(given.patch_means_BNd.shape)}, expected ({batch}, {width}, d) for "
                f"projected_BNO of {batch} images of up to {width} tokens; pass one row per token"
            )
    if positions_BNC is not None:
        place = tuple(positions_BNC.shape)
        if len(place) != 3 or place[:2] != (batch, width) or place[2] not in (1, 2):
            raise ValueError(f"positions_BNC has shape {place}, expected ({batch}, {width}, 1 or 2): row, column")


def _check_device(tensor: Tensor, name: str, projected_NO: Tensor) -> None:
    if tensor.device != projected_NO.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {projected_NO.device} as projected_BNO")


def _segments(image: int, count: int, groups_BN: Tensor | None, max_tokens: int) -> list[Segment]:
    if groups_BN is None:
        return [Segment(image, slice(0, count), count, min(count, max_tokens))]
    groups_N = groups_BN[image, :count]
    tokens = [torch.nonzero(groups_N == group).squeeze(1) for group in groups_N.unique().tolist() if group >= 0]
    quotas = _quotas([part.shape[0] for part in tokens], max_tokens)
    pairs = zip(tokens, quotas, strict=True)
    return [Segment(image, _as_run(part), part.shape[0], quota) for part, quota in pairs if quota]


def _as_run(tokens: Tensor) -> slice | Tensor:
    """A slice, where the ascending tokens are one run: it is read without a copy."""
    first, last = int(tokens[0]), int(tokens[-1])
    return slice(first, last + 1) if last + 1 - first == tokens.shape[0] else tokens


def _quotas(sizes: list[int], total: int) -> list[int]:
    """Picks of each group when `total` are dealt round-robin and exhausted groups are skipped."""
    quotas = [0] * len(sizes)
    while total > 0:
        open_groups = [group for group, size in enumerate(sizes) if quotas[group] < size]
        if not open_groups:
            break
        rounds = min(sizes[group] - quotas[group] for group in open_groups)
        rounds = min(rounds, total // len(open_groups))
        for group in open_groups if rounds else open_groups[:total]:
            quotas[group] += max(rounds, 1)
        total -= rounds * len(open_groups) if rounds else total
    return quotas


@lru_cache(maxsize=256)
def _round_robin(picks: tuple[int, ...]) -> Tensor:
    """Order of the concatenated picks of all groups: every first pick, then every second one, ..."""
    turns = torch.cat([torch.arange(count) for count in picks])
    return turns.sort(stable=True).indices


def _positional(segment: Segment, count: int, seeds_B: Tensor | None, positions_BNC: Tensor | None) -> Picks:
    """Picks of `random` (with seeds) or `uniform_grid`, on the CPU, with the share of tokens free at each."""
    tokens = _positions(segment)
    if seeds_B is not None:
        draw = torch.rand(count, generator=torch.Generator().manual_seed(int(seeds_B[segment.image])))
        order = draw[tokens].sort(stable=True).indices
    elif positions_BNC is None:
        order = grid_order(tokens.unsqueeze(1), num_picks=segment.picks)
    else:
        order = grid_order(positions_BNC[segment.image].cpu()[tokens], num_picks=segment.picks)
    gains = torch.arange(segment.size, 0, -1, dtype=torch.float32) / segment.size
    return Picks(order[None, : segment.picks], gains[None, : segment.picks])
