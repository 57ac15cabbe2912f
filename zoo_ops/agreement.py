"""How far the estimators, and the direction banks of one estimator, order the tokens alike."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo_ops.projector import ProjectorSpec, as_projector_spec
from zoo_ops.sensitivity import ESTIMATORS, estimate_sensitivity
from zoo_ops.validate import token_counts


class Agreement(NamedTuple):
    """labels: the R estimates, such as "closed_form" or "directional/seed=1".

    spearman_BRR: (B, R, R) float64, rank correlation of every pair of them for every image; NaN where one of the two
    is constant. Its mean over the images is `spearman_BRR.nanmean(0)`.
    """

    labels: tuple[str, ...]
    spearman_BRR: Tensor


def estimator_agreement(
    features_BND: Tensor,
    projector: ProjectorSpec | nn.Module,
    *,
    estimators: Sequence[str] | None = None,
    num_directions: int = 64,
    step_size: float = 0.01,
    seeds: Sequence[int] = (0, 1),
    num_tokens_B: Tensor | None = None,
) -> Agreement:
    """Spearman correlation between estimators, and between direction banks drawn from different seeds.

    estimators: names to compare, all that the projector allows without it; the random ones once per seed. Other
    arguments as in `estimate_sensitivity`, which raises the errors.
    """
    spec = as_projector_spec(projector)
    if estimators is None:
        estimators = [name for name in ESTIMATORS if name != "closed_form" or spec.closed_form_obstacle is None]
    labels, values = [], []
    for name in estimators:
        for seed in (None,) if name == "closed_form" else seeds:
            labels.append(name if seed is None else f"{name}/seed={seed}")
            values.append(
                estimate_sensitivity(
                    features_BND,
                    spec,
                    estimator=name,
                    num_directions=num_directions,
                    step_size=step_size,
                    seed=seed or 0,
                    num_tokens_B=num_tokens_B,
                )
            )
    batch, width, _ = features_BND.shape
    counts = token_counts(num_tokens_B, batch, width)
    per_image = [spearman(torch.stack([v[b, :count] for v in values])) for b, count in enumerate(counts)]
    return Agreement(tuple(labels), torch.stack(per_image))


def spearman(values_RN: Tensor) -> Tensor:
    """Spearman correlation of every pair of rows: (R, N) -> (R, R) float64; ties share their mean rank.

    NaN for a row without two different values.
    """
    ranks_RN = torch.stack([_mean_ranks(row) for row in values_RN])
    centred_RN = ranks_RN - ranks_RN.mean(1, keepdim=True)
    norms_R = centred_RN.norm(dim=1)
    correlation_RR: Tensor = (centred_RN @ centred_RN.T) / (norms_R[:, None] * norms_R[None])
    return correlation_RR


def _mean_ranks(values_N: Tensor) -> Tensor:
    _, place_N, counts = values_N.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks_N: Tensor = (last - (counts.double() - 1) / 2)[place_N]
    return ranks_N
