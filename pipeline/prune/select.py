"""Stage score + select: encoded images in, one ordered ranking per image out."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.families.base import Centring, Checkpoint, EncodedImage, Family
from zoo_ops import (
    CENTERED,
    SELECTORS,
    USES_ATTENTION,
    ProjectorSpec,
    estimate_sensitivity,
    preferred_estimator,
    rank_tokens,
    require_informative,
)


@dataclass(frozen=True)
class SelectSettings:
    """How tokens are scored and chosen."""

    budget: Budget
    selector: str = "zoo"
    estimator: str = "closed_form"
    num_directions: int = 64
    step_size: float = 0.01
    seed: int = 0
    centring: Centring = "projected"  # of the family; read by the centred selectors


@dataclass(frozen=True)
class Selection:
    """The decision about one image."""

    ranking_K: Tensor  # int64, pick order
    gain_K: Tensor  # float32
    sensitivity_N: Tensor | None  # float32; None where the projector is linear


def resolve_estimator(projector: ProjectorSpec, selector: str, requested: str) -> tuple[str, str | None]:
    """The estimator a job runs, and a line for the user where it is not the requested one.

    Raises:
        UserError: the selector needs the sensitivity and the projector is linear.
    """
    try:
        require_informative(projector, selector)
    except ValueError as error:
        raise UserError(f"--selector {selector}: {error}") from error
    if projector.is_linear:
        return "none", "the projector is linear, so tokens have no sensitivity to tell them apart; none is stored"
    estimator = preferred_estimator(projector, requested)
    if estimator == requested:
        return estimator, None
    return estimator, f"estimator {estimator} in place of {requested}: {projector.closed_form_obstacle}"


def require_attention(family: Family, checkpoint: Checkpoint, selector: str) -> None:
    """Refuse a selector that goes by the attention of a class token where the model has none.

    Raises:
        UserError: names the selectors that work.
    """
    reason = family.attention_refusal(checkpoint.config) if selector in USES_ATTENTION else None
    if reason is not None:
        others = ", ".join(name for name in SELECTORS if name not in USES_ATTENTION)
        raise UserError(f"--selector {selector}: {reason}; use one of the selectors {others}")


def image_seed(image_id: str, seed: int) -> int:
    """Seed of an image's own randomness: of its bytes and the job's seed alone, so no batch or shard changes it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8], "big") >> 1


def select_tokens(
    images: Sequence[EncodedImage],
    image_ids: Sequence[str],
    projector: ProjectorSpec,
    settings: SelectSettings,
    seconds: dict[str, float],
) -> list[Selection]:
    """Score and rank a mini-batch; adds the time to `seconds["score"]` and `seconds["select"]`.

    Args:
        images: encoded images, any mix of token counts.
        image_ids: their ids, for the seed of `random`.
        projector: of the model that encoded them.
    """
    started = time.perf_counter()
    lengths = [len(image.features_ND) for image in images]
    budgets = [settings.budget.of(n) for n in lengths]
    sensitivity_BN = None
    if not projector.is_linear:
        sensitivity_BN = estimate_sensitivity(
            pad_sequence([image.features_ND for image in images], batch_first=True),
            projector,
            estimator=preferred_estimator(projector, settings.estimator),
            num_directions=settings.num_directions,
            step_size=settings.step_size,
            seed=settings.seed,
            num_tokens_B=torch.tensor(lengths),
        )
    scored = time.perf_counter()
    groups = [image.groups_N for image in images]
    ranking = rank_tokens(
        pad_sequence([image.projected_NO for image in images], batch_first=True),
        sensitivity_BN,
        max_tokens=max(budgets),
        selector=settings.selector,
        num_tokens_B=torch.tensor(lengths),
        groups_BN=None
        if all(g is None for g in groups)
        else pad_sequence(
            [torch.zeros(n, dtype=torch.int64) if g is None else g for g, n in zip(groups, lengths, strict=True)],
            batch_first=True,
            padding_value=-1,
        ),
        seeds_B=torch.tensor([image_seed(image_id, settings.seed) for image_id in image_ids]),
        positions_BNC=pad_sequence([image.places()[:, 1:] for image in images], batch_first=True)
        if settings.selector == "uniform_grid"
        else None,
        attention_BN=_attention(images) if settings.selector in USES_ATTENTION else None,
        patch_means_BNd=_patch_means(images, projector)
        if settings.selector in CENTERED and settings.centring == "patches"
        else None,
    )
    indices, gains = ranking.indices_BK.cpu(), ranking.gains_BK.cpu()
    sensitivity = None if sensitivity_BN is None else sensitivity_BN.cpu()
    seconds["score"] = seconds.get("score", 0.0) + scored - started
    seconds["select"] = seconds.get("select", 0.0) + time.perf_counter() - scored
    return [
        Selection(indices[b, :k], gains[b, :k], None if sensitivity is None else sensitivity[b, :n])
        for b, (k, n) in enumerate(zip(budgets, lengths, strict=True))
    ]


def _attention(images: Sequence[EncodedImage]) -> Tensor:
    """What the class token pays the tokens, (B, N), padded."""
    rows = [None if image.class_attention is None else image.class_attention() for image in images]
    attention = [row for row in rows if row is not None]
    assert len(attention) == len(rows), "`require_attention` refuses models without a class token"
    return pad_sequence(attention, batch_first=True)


def _patch_means(images: Sequence[EncodedImage], projector: ProjectorSpec) -> Tensor:
    """The projector's input averaged over the patches that it merges into a token, (B, N, d), padded."""
    patches = projector.num_patches
    means = [image.features_ND.float().unflatten(1, (patches, -1)).mean(1) for image in images]
    return pad_sequence(means, batch_first=True)
