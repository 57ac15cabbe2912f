"""Literal twins of the operations: loops, the papers' order of equations, any dtype. Slow; for tests and benchmarks.

They share no arithmetic with the fast operations, only the contract.
"""

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


def rank_naive(
    projected_NO: Tensor,
    sensitivity_N: Tensor | None,
    *,
    max_tokens: int,
    selector: str = "zoo",
    groups_N: Sequence[int] | None = None,
) -> tuple[list[int], list[float]]:
    """Picks and gains of one image by the rules of `rank_tokens`, for the selectors that score tokens.

    Each group by itself, then one pick of each group in turn.
    """
    groups = [0] * len(projected_NO) if groups_N is None else list(groups_N)
    ranked = []
    for group in sorted(set(groups) - {-1}):
        tokens = [i for i, g in enumerate(groups) if g == group]
        scores = None if sensitivity_N is None else sensitivity_N[tokens]
        picks, gains = _rank_group(projected_NO[tokens], scores, selector)
        ranked.append([(tokens[i], gain) for i, gain in zip(picks, gains, strict=True)])
    turns = [group[t] for t in range(len(groups)) for group in ranked if t < len(group)]
    return [i for i, _ in turns[:max_tokens]], [gain for _, gain in turns[:max_tokens]]


def _rank_group(z_NO: Tensor, s_N: Tensor | None, selector: str) -> tuple[list[int], list[float]]:
    size = len(z_NO)
    raw = _cosine_distances(z_NO)
    distance, weight, first = raw, [1.0] * size, None
    if selector == "divprune":
        first = [min((raw[i][j] for j in range(size) if j != i), default=1.0) for i in range(size)]
    elif selector == "feature_norm":
        weight = _min_max([float(z_O.norm()) for z_O in z_NO])
    else:
        assert s_N is not None
        weight = _min_max([float(s) for s in s_N])
    if selector == "sensitivity":
        picks = sorted(range(size), key=lambda i: (-weight[i], i))
        return picks, [weight[i] for i in picks]
    if selector == "zoo_centered":
        others = max(size - 1, 1)
        crowd = [sum(1 - raw[i][j] for j in range(size) if j != i) / others for i in range(size)]
        weight = [w * c for w, c in zip(weight, _min_max([-c for c in crowd], scale=1.0), strict=True)]
        distance = _cosine_distances(z_NO - z_NO.mean(0))
    picks, gains = [], []
    score = weight if first is None else first
    for _ in range(size):
        pick = max((i for i in range(size) if i not in picks), key=lambda i: (score[i], -i))
        gains.append(score[pick])
        picks.append(pick)
        score = [weight[i] * min(distance[i][j] for j in picks) for i in range(size)]
    return picks, gains


def _min_max(values: list[float], scale: float | None = None) -> list[float]:
    low, high = min(values), max(values)
    equal_within = 1e-6 * (max(map(abs, values)) if scale is None else scale)
    return [(value - low) / (high - low) if high - low > equal_within else 1.0 for value in values]


def _cosine_distances(z_NO: Tensor) -> list[list[float]]:
    rows = []
    for z_O in z_NO:
        row = []
        for other_O in z_NO:
            norms = z_O.norm() * other_O.norm()
            distance = 1.0 - float(z_O @ other_O / norms) if norms > 0 else 1.0
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
    distance_NN = 1 - torch.cat(similarities)
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
