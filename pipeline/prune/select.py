"""Stage score + select: encoded images in, one ordered ranking per image out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.budget import Budget
from pipeline.errors import UserError
from pipeline.families.base import Centring, Checkpoint, EncodedImage, Family
from pipeline.prune.ahead import Laps
from zoo_ops import (
    CENTERED,
    SELECTORS,
    USES_ATTENTION,
    Findings,
    PreparedEstimator,
    ProjectorSpec,
    Ranking,
    preferred_estimator,
    prepare_estimator,
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


@dataclass(frozen=True)
class Ranked:
    """The rankings of a batch, where they were computed. What `findings` holds of an image spoils its ranking."""

    budgets: Sequence[int]
    lengths: Sequence[int]
    ranking: Ranking
    sensitivity_BN: Tensor | None
    findings: Findings

    def kept(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The rows of each image's values that its ranking keeps, best token first."""
        picks = zip(values, self.ranking.indices_BK, self.budgets, strict=True)
        return [rows[indices_K[:budget]] for rows, indices_K, budget in picks]

    def tensors(self) -> list[Tensor]:
        """All that `selections` needs on the host."""
        sensitivity = [] if self.sensitivity_BN is None else [self.sensitivity_BN]
        return [*self.ranking, self.findings.flags(), *sensitivity]

    def selections(self, tensors: Sequence[Tensor], *, ignoring: Sequence[int] = ()) -> list[Selection]:
        """The decision about each image, of `tensors` on the host.

        Args:
            tensors: see above.
            ignoring: images that are known to be spoilt, and whose decision means nothing.

        Raises:
            ValueError: another image is spoilt.
        """
        indices_BK, gains_BK, flags, *sensitivity = tensors
        self.findings.raise_first(flags.tolist(), ignoring=ignoring)
        return [
            Selection(indices_BK[b, :k], gains_BK[b, :k], sensitivity[0][b, :n] if sensitivity else None)
            for b, (k, n) in enumerate(zip(self.budgets, self.lengths, strict=True))
        ]


class TokenSelector:
    """Scores and ranks batches of images of one model. What the estimator needs of its projector is made once."""

    def __init__(self, projector: ProjectorSpec, settings: SelectSettings) -> None:
        self._projector, self._settings = projector, settings
        self._estimator: PreparedEstimator | None = None

    def rank(self, images: Sequence[EncodedImage], image_ids: Sequence[str], laps: Laps) -> Ranked:
        """Score and rank a mini-batch; nothing waits for the device. Its laps are `score` and `select`.

        Args:
            images: encoded images, any mix of token counts.
            image_ids: their ids, for the seed of `random`.
            laps: of the batch.
        """
        settings, projector = self._settings, self._projector
        lengths = [len(image.features_ND) for image in images]
        budgets = [settings.budget.of(n) for n in lengths]
        findings = Findings()
        sensitivity_BN = self._sensitivity([image.features_ND for image in images], findings)
        laps.lap("score")
        groups = [image.groups_N for image in images]
        ranking = rank_tokens(
            [image.projected_NO for image in images],
            sensitivity_BN,
            max_tokens=max(budgets),
            selector=settings.selector,
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
            findings=findings,
        )
        laps.lap("select")
        return Ranked(budgets, lengths, ranking, sensitivity_BN, findings)

    def _sensitivity(self, features: Sequence[Tensor], findings: Findings) -> Tensor | None:
        if self._projector.is_linear:
            return None
        if self._estimator is None:
            self._estimator = prepare_estimator(
                self._projector,
                features[0],
                estimator=preferred_estimator(self._projector, self._settings.estimator),
                num_directions=self._settings.num_directions,
                step_size=self._settings.step_size,
                seed=self._settings.seed,
            )
        return self._estimator(features, findings=findings)


def select_tokens(
    images: Sequence[EncodedImage], image_ids: Sequence[str], projector: ProjectorSpec, settings: SelectSettings
) -> list[Selection]:
    """The decisions about a few images, on the host. Raises ValueError where features are not finite."""
    laps = Laps(images[0].features_ND.device)
    ranked = TokenSelector(projector, settings).rank(images, image_ids, laps)
    return ranked.selections([tensor.cpu() for tensor in ranked.tensors()])


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
