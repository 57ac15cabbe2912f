"""From features and sensitivities to picks: the weights and distances of each selector."""

from collections.abc import Iterator, Sequence
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


def scored_picks(
    segments: Sequence[Segment], projected_BNO: Tensor, sensitivity_BN: Tensor | None, selector: str
) -> list[tuple[Tensor, Tensor]]:
    """Picks (positions in the image) and float32 gains of every segment, for the selectors that score tokens."""
    results: list[tuple[Tensor, Tensor]] = []
    for chunk in _side_by_side(segments):
        pairs = _greedy(chunk, projected_BNO, sensitivity_BN, selector)
        for segment, (picks, gains) in zip(chunk, pairs, strict=True):
            picks, gains = picks[: segment.picks], gains[: segment.picks].float()
            results.append((picks if segment.tokens is None else segment.tokens[picks], gains))
    return results


def _greedy(
    chunk: Sequence[Segment],
    projected_BNO: Tensor,
    sensitivity_BN: Tensor | None,
    selector: str,
) -> list[tuple[Tensor, Tensor]]:
    dtype, device = arithmetic_dtype(projected_BNO), projected_BNO.device
    widest = max(segment.size for segment in chunk)
    first_RN = torch.full((len(chunk), widest), -torch.inf, dtype=dtype, device=device)
    weight_RN = torch.zeros_like(first_RN)
    keep_matrix = selector != "sensitivity" and widest <= MATRIX_TOKENS
    # Zeros, where a shorter segment leaves room: anything else there would have to be finite.
    distance_RNN = torch.zeros((len(chunk), *(2 * [widest if keep_matrix else 0])), dtype=dtype, device=device)
    directions = Directions(first_RN, first_RN)
    finite, finite_scores, by_score = [], [], []
    for r, segment in enumerate(chunk):
        rows_NO = own_rows(segment.take(projected_BNO), dtype)
        norms_N = torch.linalg.vector_norm(rows_NO, dim=-1)
        score_N = norms_N
        if selector in USES_SENSITIVITY:
            assert sensitivity_BN is not None
            score_N = segment.take(sensitivity_BN).to(dtype)
        # The norm carries NaN and Inf along, without a pass over the features of its own.
        finite.append(norms_N.sum().isfinite())
        finite_scores.append(score_N.sum().isfinite())
        if selector == "sensitivity":
            weight_N = min_max(score_N)
            # By the sensitivity itself, as the weight may round two of them to one; unless all count as equal.
            key_N = torch.where(weight_N.amin() == 1, weight_N, score_N)
            order_N = key_N.sort(descending=True, stable=True).indices
            by_score.append((order_N, weight_N[order_N]))
            continue
        directions = Directions.of(rows_NO, norms_N)
        weight_N = torch.ones_like(norms_N) if selector == "divprune" else min_max(score_N)
        if selector == "zoo_centered":
            weight_N = weight_N * min_max(-directions.mean_cosines(), scale=1.0)
            rows_NO = rows_NO - rows_NO.mean(0)
            directions = Directions.of(rows_NO, torch.linalg.vector_norm(rows_NO, dim=-1))
        weight_RN[r, : segment.size] = weight_N
        matrix_NN = distance_RNN[r, : segment.size, : segment.size] if keep_matrix else None
        if matrix_NN is not None:
            pairwise_distances(directions, matrix_NN)
        if selector == "divprune":
            weight_N = nearest_distances(directions, matrix_NN)
        first_RN[r, : segment.size] = weight_N
    # Before the picks: among NaNs there is no largest score.
    images = [segment.image for segment in chunk]
    check_finite(finite, "projected_BNO", images)
    check_finite(finite_scores, "sensitivity_BN", images)
    if selector == "sensitivity":
        return by_score
    rows_R = torch.arange(len(chunk), device=device)

    def distance_to(pick_R: Tensor) -> Tensor:
        if keep_matrix:
            return distance_RNN[rows_R, pick_R]
        return directions.distances_from(pick_R).T

    picks_RK, gains_RK = greedy_picks(
        first_RN, weight_RN, distance_to, num_picks=max(segment.picks for segment in chunk)
    )
    return list(zip(picks_RK, gains_RK, strict=True))


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
