"""From features and sensitivities to picks: the weights and distances of each selector."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_ops.coverage import coverage_picks
from zoo_ops.greedy import Directions, greedy_picks, nearest_distances, pairwise_distances
from zoo_ops.precision import arithmetic_dtype, own_rows
from zoo_ops.selectors import CENTERED, USES_ATTENTION, USES_SENSITIVITY
from zoo_ops.validate import check_finite

# Up to here all distances of an image are computed at once; larger images compute a row of them per pick. By the
# image's size alone, so that neither the batch nor the budget changes the arithmetic.
MATRIX_TOKENS = 4096
EQUAL_WITHIN = 1e-6
# Distances of the segments ranked side by side; bounds memory, and picks do not depend on it.
SIDE_BY_SIDE_BYTES = 64 * 2**20
# By one score for each token, which no pick changes.
BY_SCORE = ("sensitivity", "cls_attention")
# Without a score of their own; they begin at the token whose nearest neighbour is farthest.
BY_DISTANCE = ("divprune", "divprune_centered")
BY_COVERAGE = ("coverage", "zoo_coverage")


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


class Given(NamedTuple):
    """What `rank_tokens` was given to score with; None for what the selector does without."""

    projected_BNO: Tensor
    sensitivity_BN: Tensor | None
    attention_BN: Tensor | None
    patch_means_BNd: Tensor | None


class _Prepared(NamedTuple):
    """What the picks of one segment are made from. finite: of each argument that was read, as scalar tensors."""

    directions: Directions
    score: Tensor
    weight: Tensor
    finite: dict[str, Tensor]


def scored_picks(segments: Sequence[Segment], given: Given, selector: str) -> list[tuple[Tensor, Tensor]]:
    """Picks (positions in the image) and float32 gains of every segment, for the selectors that score tokens."""
    results: list[tuple[Tensor, Tensor]] = []
    alone = selector in BY_SCORE + BY_COVERAGE
    chunks = ([segment] for segment in segments) if alone else _side_by_side(segments)
    for chunk in chunks:
        prepared = (_prepare(segment, given, selector) for segment in chunk)
        if selector in BY_SCORE:
            pairs: Iterable[tuple[Tensor, Tensor]] = [_by_score(chunk, *prepared)]
        elif selector in BY_COVERAGE:
            pairs = [_by_coverage(chunk, *prepared)]
        else:
            pairs = _greedy(chunk, prepared, selector)
        for segment, (picks, gains) in zip(chunk, pairs, strict=True):
            picks, gains = picks[: segment.picks], gains[: segment.picks].float()
            results.append((picks if segment.tokens is None else segment.tokens[picks], gains))
    return results


def _prepare(segment: Segment, given: Given, selector: str) -> _Prepared:
    rows_NO = own_rows(segment.take(given.projected_BNO), arithmetic_dtype(given.projected_BNO))
    norms_N = torch.linalg.vector_norm(rows_NO, dim=-1)
    # The norm carries NaN and Inf along, without a pass over the features of its own.
    finite = {"projected_BNO": norms_N.sum().isfinite()}
    score_N = norms_N
    if selector in USES_SENSITIVITY:
        assert given.sensitivity_BN is not None
        score_N = segment.take(given.sensitivity_BN).to(rows_NO.dtype)
        finite["sensitivity_BN"] = score_N.sum().isfinite()
    elif selector in USES_ATTENTION:
        assert given.attention_BN is not None
        score_N = segment.take(given.attention_BN).to(rows_NO.dtype)
        finite["attention_BN"] = score_N.sum().isfinite()
    directions = Directions.of(rows_NO, norms_N)
    if selector in (*BY_DISTANCE, "coverage"):
        weight_N = torch.ones_like(norms_N)
    else:
        weight_N = of_largest(score_N) if selector == "zoo_coverage" else min_max(score_N)
    if selector in CENTERED and given.patch_means_BNd is not None:
        rows_Nd = own_rows(segment.take(given.patch_means_BNd), rows_NO.dtype)
        finite["patch_means_BNd"] = rows_Nd.sum().isfinite()
        rows_NO = standardized(rows_Nd)
        alone_N = -Directions.of(rows_NO, torch.linalg.vector_norm(rows_NO, dim=-1)).mean_cosines()
        weight_N = weight_N * torch.sigmoid(z_score(alone_N, scale=1.0))
    elif selector in CENTERED:
        weight_N = weight_N * min_max(-directions.mean_cosines(), scale=1.0)
    if selector in CENTERED:
        rows_NO = rows_NO - rows_NO.mean(0)
        directions = Directions.of(rows_NO, torch.linalg.vector_norm(rows_NO, dim=-1))
    return _Prepared(directions, score_N, weight_N, finite)


def _by_score(chunk: Sequence[Segment], prepared: _Prepared) -> tuple[Tensor, Tensor]:
    _check_finite(chunk, [prepared.finite])
    # By the score itself, as the weight may round two of them to one; unless all count as equal.
    key_N = torch.where(prepared.weight.amin() == 1, prepared.weight, prepared.score)
    order_N = key_N.sort(descending=True, stable=True).indices
    return order_N, prepared.weight[order_N]


def _by_coverage(chunk: Sequence[Segment], prepared: _Prepared) -> tuple[Tensor, Tensor]:
    # Before the picks: among NaNs there is no largest gain.
    _check_finite(chunk, [prepared.finite])
    size = prepared.weight.shape[0]
    similarity_NN = prepared.weight.new_empty(size, size)
    pairwise_distances(prepared.directions, similarity_NN)
    torch.sub(1.0, similarity_NN, out=similarity_NN)
    return coverage_picks(similarity_NN, prepared.weight, num_picks=chunk[0].picks)


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
        first_RN[r, :size] = nearest_distances(one.directions, matrix_NN) if selector in BY_DISTANCE else one.weight
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


def _check_finite(chunk: Sequence[Segment], finite: Sequence[dict[str, Tensor]]) -> None:
    images = [segment.image for segment in chunk]
    for name in finite[0]:
        check_finite([flags[name] for flags in finite], name, images)


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
    low, spread, equal = _spread(values_N, scale)
    return torch.where(equal, torch.ones_like(values_N), (values_N - low) / spread)


def of_largest(values_N: Tensor) -> Tensor:
    """Values of at least 0 over the largest; all ones when they count as equal, as in `min_max`."""
    _, _, equal = _spread(values_N, None)
    return torch.where(equal, torch.ones_like(values_N), values_N / values_N.amax())


def z_score(values_N: Tensor, *, scale: float) -> Tensor:
    """(v - mean v) / sd v, the sd of these values themselves; all zeros when they count as equal, as in `min_max`."""
    _, _, equal = _spread(values_N, scale)
    centred_N = values_N - values_N.mean()
    return torch.where(equal, torch.zeros_like(values_N), centred_N / values_N.std(correction=0))


def standardized(rows_Nd: Tensor) -> Tensor:
    """Rows over the standard deviation of each dimension over them; 0 in dimensions that do not vary.

    A dimension does not vary where its sigma is within 1e-6 of its largest magnitude.
    """
    sigma_d = rows_Nd.std(0, correction=0)
    varies_d = sigma_d > EQUAL_WITHIN * rows_Nd.abs().amax(0)
    return torch.where(varies_d, rows_Nd / sigma_d, torch.zeros_like(rows_Nd))


def _spread(values_N: Tensor, scale: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest value, largest less smallest, and whether all count as equal."""
    low, high = values_N.amin(), values_N.amax()
    largest = values_N.abs().amax() if scale is None else scale
    return low, high - low, high - low <= EQUAL_WITHIN * largest
