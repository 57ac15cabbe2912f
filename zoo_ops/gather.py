"""Apply a ranking: the kept rows at a budget."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_ops.ranking import Ranking
from zoo_ops.validate import check_integer

ORDERS = ("pick", "raster")


class KeptTokens(NamedTuple):
    """Kept rows of every image, K = the largest budget of the batch.

    features_BKO: the rows, zero behind an image's last one.  mask_BK: True for kept rows.
    indices_BK: int64 positions in the image's token sequence, -1 where the mask is False.
    """

    features_BKO: Tensor
    mask_BK: Tensor
    indices_BK: Tensor


def gather_tokens(
    features: Tensor | Sequence[Tensor], ranking: Ranking, *, budget: int | Tensor, order: str = "raster"
) -> KeptTokens:
    """Rows of `features` that the first `budget` entries of `ranking` name.

        pick order:    out[b, t] = features[b, indices[b, t]],  t < budget
        raster order:  the same rows by ascending index, as a language model expects them

    features: (B, N, O), or a sequence of B tensors (N_b, O); any dtype, returned as it is (bit for bit).
    budget: one integer for all images, or (B,) integers from 0 (see zoo_ops.budgets); images with fewer ranked
    tokens keep them all.
    Raises ValueError: budget below those or beyond the ranking's K, unknown order, shapes or indices that do not fit.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, expected one of {', '.join(ORDERS)}")
    batch, longest = ranking.indices_BK.shape
    if len(features) != batch:
        raise ValueError(f"features holds {len(features)} images, expected {batch} as the ranking; pass the same batch")
    if any(image.dim() != 2 for image in features):
        raise ValueError("features has a wrong number of axes, expected (B, N, O) or a sequence of (N, O)")
    device = features[0].device
    budgets_B = _budgets(budget, batch, longest).to(device)
    width = int(budgets_B.amax())
    indices_BK = ranking.indices_BK[:, :width].to(device)
    mask_BK = (torch.arange(width, device=device) < budgets_B.unsqueeze(1)) & (indices_BK >= 0)
    if order == "raster":
        # Dropped entries sort behind every index.
        indices_BK = torch.where(mask_BK, indices_BK, torch.iinfo(torch.int64).max).sort(dim=1).values
        mask_BK = indices_BK < torch.iinfo(torch.int64).max
    indices_BK = torch.where(mask_BK, indices_BK, -1)
    lengths_B1 = torch.tensor([[image.shape[0]] for image in features], device=device)
    if bool((indices_BK >= lengths_B1).any()):
        image = int((indices_BK >= lengths_B1).any(1).nonzero()[0])
        raise ValueError(
            f"the ranking of image {image} of the batch names token {int(indices_BK[image].amax())}, expected below "
            f"{int(lengths_B1[image])}, its number of tokens; pass the features it was computed from"
        )
    safe_BK = indices_BK.clamp_min(0)
    rows = [image.index_select(0, index) for image, index in zip(features, safe_BK, strict=True)]
    features_BKO = torch.stack(rows).masked_fill_(~mask_BK.unsqueeze(-1), 0)
    return KeptTokens(features_BKO, mask_BK, indices_BK)


def _budgets(budget: int | Tensor, batch: int, longest: int) -> Tensor:
    if isinstance(budget, Tensor):
        if tuple(budget.shape) != (batch,) or budget.is_floating_point():
            raise ValueError(
                f"budget has shape {tuple(budget.shape)} and dtype {budget.dtype}, expected ({batch},) integers"
            )
        budgets_B = budget
    else:
        check_integer(budget, "budget", 1)
        budgets_B = torch.full((batch,), budget)
    least = 0 if isinstance(budget, Tensor) else 1
    for value in (int(budgets_B.amin()), int(budgets_B.amax())):
        if not least <= value <= longest:
            raise ValueError(
                f"budget is {value}, expected {least} to {longest}, the ranking holds; rank with max_tokens={value} "
                "or ask for fewer"
            )
    return budgets_B
