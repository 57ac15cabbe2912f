"""From features and sensitivities to picks: the weights and distances of each selector."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_ops.greedy import Directions, greedy_picks, nearest_distances, pairwise_distances
from zoo_ops.precision import arithmetic_dtype, own_rows
from zoo_ops.selectors import USES_SENSITIVITY
from zoo_ops.validate import check_finite

# Up to here all distances of an image are computed at once; larger images compute a row of them per pick. By the
# image's size alone, so that neither the batch nor the budget changes the arithmetic.
MATRIX_TOKENS = 4096
EQUAL_WITHIN = 1e-6
# Distances of the segments ranked side by side; bounds memory, and picks do not depend on it.
SIDE_BY_SIDE_BYTES = 64 * 2**20


class Segment(NamedTuple):
    """Tokens ranked together: one group of one image. tokens: their positions in the image, None for 0 .. size - 1."""

    image: int
    tokens: Tensor | None
    size: int
    picks: int

    def take(self, values: Tensor) -> Tensor:
        """The segment's rows of a padded batch."""
        of_image = values[self.image]
        return of_image[: self.size] if self.tokens is None else of_image[self.tokens]


class _Prepared(NamedTuple):
    """What the picks of one segment are made from. finite: of features and scores, as scalar tensors."""

    directions: Directions
    score: Tensor
    weight: Tensor
    finite: tuple[Tensor, Tensor]


def scored_picks(
    segments: Sequence[Segment], projected_BNO: Tensor, sensitivity_BN: Tensor | None, selector: str
) -> list[tuple[Tensor, Tensor]]:
    """Picks (positions in the image) and float32 gains of every segment, for the selectors that score tokens."""
    results: list[tuple[Tensor, Tensor]] = []
    chunks = ([segment] for segment in segments) if selector == "sensitivity" else _side_by_side(segments)
    for chunk in chunks:
        prepared = (_prepare(segment, projected_BNO, sensitivity_BN, selector) for segment in chunk)
        pairs = [_by_score(chunk, *prepared)] if selector == "sensitivity" else _greedy(chunk, prepared, selector)
        for segment, (picks, gains) in zip(chunk, pairs, strict=True):
            picks, gains = picks[: segment.picks], gains[: segment.picks].float()
            results.append((picks if segment.tokens is None else segment.tokens[picks], gains))
    return results


def _prepare(segment: Segment, projected_BNO: Tensor, sensitivity_BN: Tensor | None, selector: str) -> _Prepared:
    rows_NO = own_rows(segment.take(projected_BNO), arithmetic_dtype(projected_BNO))
    norms_N = torch.linalg.vector_norm(rows_NO, dim=-1)
    score_N = norms_N
    if selector in USES_SENSITIVITY:
        assert sensitivity_BN is not None
        score_N = segment.take(sensitivity_BN).to(rows_NO.dtype)
    # The norm carries NaN and Inf along, without a pass over the features of its own.
    finite = norms_N.sum().isfinite(), score_N.sum().isfinite()
    directions = Directions.of(rows_NO, norms_N)
    weight_N = torch.ones_like(norms_N) if selector == "divprune" else min_max(score_N)
    if selector == "zoo_centered":
        weight_N = weight_N * min_max(-directions.mean_cosines(), scale=1.0)
        rows_NO = rows_NO - rows_NO.mean(0)
        directions = Directions.of(rows_NO, torch.linalg.vector_norm(rows_NO, dim=-1))
    return _Prepared(directions, score_N, weight_N, finite)


def _by_score(chunk: Sequence[Segment], prepared: _Prepared) -> tuple[Tensor, Tensor]:
    _check_finite(chunk, [prepared.finite])
    # By the score itself, as the weight may round two of them to one; unless all count as equal.
    key_N = torch.where(prepared.weight.amin() == 1, prepared.weight, prepared.score)
    order_N = key_N.sort(descending=True, stable=True).indices
    return order_N, prepared.weight[order_N]


def _greedy(chunk: Sequence[Segment], prepared: Iterable[_Prepared], selector: str) -> Iterable[tuple[Tensor, Tensor]]:
    """Picks of all segments of `chunk`, side by side. `prepared` is consumed one by one: their rows are large."""
    widest = max(segment.size for segment in chunk)
    keep_matrix = widest <= MATRIX_TOKENS
    finite = []
    for r, one in enumerate(prepared):
        size = one.weight.shape[0]
        if r == 0:
            first_RN = one.weight.new_full((len(chunk), widest), -torch.inf)
            weight_RN = torch.zeros_like(first_RN)
            # Zeros where a shorter segment leaves room: there, too, distances must be finite.
            distance_RNN = one.weight.new_zeros((len(chunk), widest, widest) if keep_matrix else (0, 0, 0))
        matrix_NN = distance_RNN[r, :size, :size] if keep_matrix else None
        if matrix_NN is not None:
            pairwise_distances(one.directions, matrix_NN)
        weight_RN[r, :size] = one.weight
        first_RN[r, :size] = nearest_distances(one.directions, matrix_NN) if selector == "divprune" else one.weight
        finite.append(one.finite)
    # Before the picks: among NaNs there is no largest score.
    _check_finite(chunk, finite)
    rows_R = torch.arange(len(chunk), device=first_RN.device)

    def distance_to(pick_R: Tensor) -> Tensor:
        # Without the matrix, a chunk is one segment.
        return distance_RNN[rows_R, pick_R] if keep_matrix else one.directions.distances_from(pick_R).T

    num_picks = max(segment.picks for segment in chunk)
    picks_RK, gains_RK = greedy_picks(first_RN, weight_RN, distance_to, num_picks=num_picks)
    return zip(picks_RK, gains_RK, strict=True)


def _check_finite(chunk: Sequence[Segment], finite: Sequence[tuple[Tensor, Tensor]]) -> None:
    images = [segment.image for segment in chunk]
    for name, flags in zip(("projected_BNO", "sensitivity_BN"), zip(*finite, strict=True), strict=True):
        check_finite(list(flags), name, images)


def _side_by_side(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Runs of segments whose distance matrices, padded to the largest, fit SIDE_BY_SIDE_BYTES together."""
    chunk: list[Segment] = []
    widest = 0
    for segment in segments:
        widest = max(widest, segment.size)
        alone = widest > MATRIX_TOKENS or (len(chunk) + 1) * widest**2 * 4 > SIDE_BY_SIDE_BYTES
        if chunk and alone:
            yield chunk
            chunk, widest = [], segment.size
        chunk.append(segment)
    if chunk:
        yield chunk


def min_max(values_N: Tensor, *, scale: float | None = None) -> Tensor:
    """(v - min v) / (max v - min v); all ones when max = min.

    They count as equal within 1e-6 of `scale` (without it, of the largest magnitude): stretching what is but rounding
    of float32 to the whole interval would rank tokens that are alike by noise.
    """
    low, high = values_N.amin(), values_N.amax()
    spread = high - low
    largest = values_N.abs().amax() if scale is None else scale
    return torch.where(spread > EQUAL_WITHIN * largest, (values_N - low) / spread, torch.ones_like(values_N))
