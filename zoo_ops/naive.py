"""Literal twins of the operations: loops, the papers' order of equations, any dtype. Slow; for tests and benchmarks.

They share no arithmetic with the fast operations, only the contract.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo_ops.greedy import DUPLICATE_DISTANCE


def finite_difference_naive(
    features_ND: Tensor, project: Callable[[Tensor], Tensor], directions_MD: Tensor, *, step_size: float = 0.01
) -> Tensor:
    """s_i = (1/m) sum_j || M(x_i + h u_j) - M(x_i - h u_j) || / 2h: (N, D) -> (N,), all in the features' dtype.

    The published estimator (arXiv 2509.24837, section 3): two passes of the projector per direction.
    """
    total_N = torch.zeros_like(features_ND[:, 0])
    for direction_D in directions_MD:
        delta_NO = (project(features_ND + step_size * direction_D) - project(features_ND - step_size * direction_D)) / (
            2 * step_size
        )
        total_N += delta_NO.norm(dim=-1)
    return total_N / len(directions_MD)


def jacobians_naive(features_ND: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """Jacobian of every row by reverse-mode differentiation: (N, O, D)."""
    with torch.enable_grad():
        return torch.stack([_jacobian(row_D, project) for row_D in features_ND.detach()])


def _jacobian(row_D: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    jacobian_OD: Tensor = torch.autograd.functional.jacobian(lambda row: project(row[None])[0], row_D)
    return jacobian_OD


def closed_form_naive(features_ND: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """s_i = ||J_i||_F / sqrt(D), from the Jacobians themselves: (N, D) -> (N,)."""
    jacobians_NOD = jacobians_naive(features_ND, project)
    sensitivity_N: Tensor = jacobians_NOD.square().sum((1, 2)).sqrt() / features_ND.shape[1] ** 0.5
    return sensitivity_N


def directional_naive(features_ND: Tensor, project: Callable[[Tensor], Tensor], directions_MD: Tensor) -> Tensor:
    """s_i = (1/m) sum_j || J_i u_j ||, from the Jacobians themselves: (N, D) -> (N,)."""
    jacobians_NOD = jacobians_naive(features_ND, project)
    return torch.stack([(J_OD @ directions_MD.T).norm(dim=0).mean() for J_OD in jacobians_NOD])


def class_attention_naive(query_BD: Tensor, keys_BTD: Tensor, *, num_heads: int) -> Tensor:
    """Attention of the class token to the others, summed over the heads, one dot product at a time: (B, N), float64."""
    rows = []
    for query_D, keys_TD in zip(query_BD.double(), keys_BTD.double(), strict=True):
        depth = len(query_D) // num_heads
        total = [0.0] * (len(keys_TD) - 1)
        for head in range(num_heads):
            part = slice(head * depth, (head + 1) * depth)
            powers = [math.exp(float(query_D[part] @ key_D[part]) / math.sqrt(depth)) for key_D in keys_TD]
            total = [a + power / sum(powers) for a, power in zip(total, powers[1:], strict=True)]
        rows.append(torch.tensor(total, dtype=torch.float64))
    return torch.stack(rows)


def rank_naive(
    projected_NO: Tensor,
    score_N: Tensor | None,
    *,
    max_tokens: int,
    selector: str = "zoo",
    groups_N: Sequence[int] | None = None,
    patch_means_Nd: Tensor | None = None,
) -> tuple[list[int], list[float]]:
    """Picks and gains of one image by the rules of `rank_tokens`, for the selectors that score tokens.

    Each group by itself, then one pick of each group in turn.  score_N: the sensitivity, or the attention of the class
    token, where the selector has one.
    """
    groups = [0] * len(projected_NO) if groups_N is None else list(groups_N)
    ranked = []
    for group in sorted(set(groups) - {-1}):
        tokens = [i for i, g in enumerate(groups) if g == group]
        scores = None if score_N is None else score_N[tokens]
        means = None if patch_means_Nd is None else patch_means_Nd[tokens]
        picks, gains = _rank_group(projected_NO[tokens], scores, selector, means)
        ranked.append([(tokens[i], gain) for i, gain in zip(picks, gains, strict=True)])
    turns = [group[t] for t in range(len(groups)) for group in ranked if t < len(group)]
    return [i for i, _ in turns[:max_tokens]], [gain for _, gain in turns[:max_tokens]]


def _rank_group(
    z_NO: Tensor, s_N: Tensor | None, selector: str, means_Nd: Tensor | None
) -> tuple[list[int], list[float]]:
    size = len(z_NO)
    distance, weight = _cosine_distances(z_NO), [1.0] * size
    if selector == "feature_norm":
        weight = _min_max([float(z_O.norm()) for z_O in z_NO])
    elif selector in ("zoo", "zoo_centered", "sensitivity", "cls_attention"):
        assert s_N is not None
        weight = _min_max([float(s) for s in s_N])
    elif selector == "zoo_coverage":
        assert s_N is not None
        equal = set(_min_max([float(s) for s in s_N])) == {1.0}
        weight = [1.0 if equal else float(s) / float(s_N.max()) for s in s_N]
    if selector in ("sensitivity", "cls_attention"):
        picks = sorted(range(size), key=lambda i: (-weight[i], i))
        return picks, [weight[i] for i in picks]
    if selector in ("coverage", "zoo_coverage"):
        return _cover(distance, weight)
    if selector in ("zoo_centered", "divprune_centered"):
        preference, distance = _centred(z_NO, distance) if means_Nd is None else _centred_patches(means_Nd)
        weight = [w * g for w, g in zip(weight, preference, strict=True)]
    first = weight
    if selector in ("divprune", "divprune_centered"):
        first = [min((distance[i][j] for j in range(size) if j != i), default=1.0) for i in range(size)]
    picks, gains = [], []
    score = first
    for _ in range(size):
        pick = max((i for i in range(size) if i not in picks), key=lambda i: (score[i], -i))
        gains.append(score[pick])
        picks.append(pick)
        score = [weight[i] * min(distance[i][j] for j in picks) for i in range(size)]
    return picks, gains


def _cover(distance: list[list[float]], weight: list[float]) -> tuple[list[int], list[float]]:
    """Facility location: every gain anew at every pick."""
    size = len(weight)
    picks: list[int] = []
    gains = []
    for _ in range(size):
        covered = [max([0.0] + [1 - distance[u][j] for j in picks]) for u in range(size)]
        score = []
        for i in range(size):
            more = [1 - distance[u][i] - covered[u] for u in range(size)]
            score.append(weight[i] * sum(m for m in more if m > DUPLICATE_DISTANCE) / size)
        pick = max((i for i in range(size) if i not in picks), key=lambda i: (score[i], -i))
        gains.append(score[pick])
        picks.append(pick)
    return picks, gains


def _mean_to_others(distance: list[list[float]]) -> list[float]:
    """Mean cosine of every token to the other ones; 0 for a single one."""
    size = len(distance)
    return [sum(1 - row[j] for j in range(size) if j != i) / max(size - 1, 1) for i, row in enumerate(distance)]


def _centred(z_NO: Tensor, raw: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """Preference and distances of the centred selectors, on projected features."""
    return _min_max([-mean for mean in _mean_to_others(raw)], scale=1.0), _cosine_distances(z_NO - z_NO.mean(0))


def _centred_patches(means_Nd: Tensor) -> tuple[list[float], list[list[float]]]:
    """Preference and distances of the centred selectors, on the tower's features averaged over a token's patches."""
    columns = []
    for x_N in means_Nd.T:
        sigma = float(((x_N - x_N.mean()) ** 2).mean().sqrt())
        columns.append(x_N / sigma if sigma > 1e-6 * float(x_N.abs().max()) else torch.zeros_like(x_N))
    y_Nd = torch.stack(columns, dim=1)
    alone = [-mean for mean in _mean_to_others(_cosine_distances(y_Nd))]
    mean = sum(alone) / len(alone)
    deviation = math.sqrt(sum((g - mean) ** 2 for g in alone) / len(alone))
    varies = max(alone) - min(alone) > 1e-6
    preference = [1 / (1 + math.exp(-(g - mean) / deviation)) if varies else 0.5 for g in alone]
    return preference, _cosine_distances(y_Nd - y_Nd.mean(0))


def _min_max(values: list[float], scale: float | None = None) -> list[float]:
    low, high = min(values), max(values)
    equal_within = 1e-6 * (max(map(abs, values)) if scale is None else scale)
    return [(value - low) / (high - low) if high - low > equal_within else 1.0 for value in values]


def _cosine_distances(z_NO: Tensor) -> list[list[float]]:
    rows = []
    norms = [z_O.norm() for z_O in z_NO]
    for z_O, norm in zip(z_NO, norms, strict=True):
        row = []
        for other_O, other_norm in zip(z_NO, norms, strict=True):
            product = norm * other_norm
            distance = 1.0 - float(z_O @ other_O / product) if product > 0 else 1.0
            row.append(distance if distance > DUPLICATE_DISTANCE else 0.0)
        rows.append(row)
    return rows


def rank_published(
    projected_NO: Tensor, sensitivity_N: Tensor, *, max_tokens: int, rows_at_a_time: int | None = None
) -> Tensor:
    """The published form of the zoo selector, tensor by tensor: (max_tokens,) int64. For timing.

    All pairwise cosines by broadcasting; at every step the minima over all picks so far, anew. Broadcasting takes three
    times N x N x O numbers (16 GB at 576 x 4096): rows_at_a_time cuts that into parts, for machines without them.
    """
    parts = projected_NO.split(rows_at_a_time or len(projected_NO))
    similarities = [torch.nn.functional.cosine_similarity(part[:, None], projected_NO[None], dim=-1) for part in parts]
    return picks_published(1 - torch.cat(similarities), sensitivity_N, max_tokens=max_tokens)


def picks_published(distance_NN: Tensor, sensitivity_N: Tensor, *, max_tokens: int) -> Tensor:
    """The steps of `rank_published` on cosine distances that are there already: (max_tokens,) int64."""
    weight_N = (sensitivity_N - sensitivity_N.min()) / (sensitivity_N.max() - sensitivity_N.min())
    picks = torch.empty(max_tokens, dtype=torch.int64)
    for step in range(max_tokens):
        score_N = weight_N.clone()
        if step:
            score_N = distance_NN[picks[:step]].amin(0) * weight_N
            score_N[picks[:step]] = -torch.inf
        picks[step] = score_N.argmax()
    return picks


def gather_naive(features_NO: Tensor, picks: Sequence[int], *, budget: int, order: str = "raster") -> Tensor:
    """Rows of the first `budget` picks, (budget, O), in pick or raster order."""
    kept = list(picks[:budget])
    return torch.stack([features_NO[i] for i in (sorted(kept) if order == "raster" else kept)])
