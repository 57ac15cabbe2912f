"""From features and sensitivities to picks: the weights and distances of each selector."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_ops.coverage import coverage_picks
from zoo_ops.greedy import Directions, greedy_picks, nearest_distances, pairwise_distances
from zoo_ops.precision import arithmetic_dtype, own_rows
from zoo_ops.selectors import CENTERED, USES_ATTENTION, USES_SENSITIVITY
from zoo_ops.validate import Findings, check_finite

# Up to here all distances of an image are computed at once; larger images compute a row of them per pick. By the
# image's size and the kind of device alone, so that neither the batch nor the budget changes the arithmetic.
MATRIX_TOKENS, MATRIX_TOKENS_OF_GPU = 4096, 16384
EQUAL_WITHIN = 1e-6
# Distances of the segments ranked side by side; bounds memory, and picks do not depend on it. On a GPU what counts is
# that all segments of a batch are ranked in one loop.
SIDE_BY_SIDE_BYTES, SIDE_BY_SIDE_BYTES_OF_GPU = 64 * 2**20, 2 * 2**30
# By one score for each token, which no pick changes.
BY_SCORE = ("sensitivity", "cls_attention")
# Without a score of their own; they begin at the token whose nearest neighbour is farthest.
BY_DISTANCE = ("divprune", "divprune_centered")
BY_COVERAGE = ("coverage", "zoo_coverage")


class Segment(NamedTuple):
    """Tokens ranked together: one group of one image.

    tokens: their positions in the image, which are a run of it or, on its device, (size,) int64.
    """

    image: int
    tokens: slice | Tensor
    size: int
    picks: int

    def take(self, values: Tensor | Sequence[Tensor]) -> Tensor:
        """The segment's rows of what is given for each image."""
        return values[self.image][self.tokens]


class Given(NamedTuple):
    """What `rank_tokens` was given to score with; None for what the selector does without."""

    projected: Sequence[Tensor]  # (N, O) of each image
    sensitivity_BN: Tensor | None
    attention_BN: Tensor | None
    patch_means_BNd: Tensor | None


class Picks(NamedTuple):
    """Picks of segments ranked side by side: (R, K) of which the first ones of each row count.

    tokens_RK: places within the segment.  gains_RK: float32.
    """

    tokens_RK: Tensor
    gains_RK: Tensor


class _Prepared(NamedTuple):
    """What the picks of one segment are made from."""

    directions: Directions
    score: Tensor
    weight: Tensor


def scored_picks(segments: Sequence[Segment], given: Given, selector: str, findings: Findings | None) -> list[Picks]:
    """Picks of all segments, in their order, for the selectors that score tokens."""
    alone = selector in BY_SCORE + BY_COVERAGE
    on_cpu = given.projected[0].device.type == "cpu"
    results = []
    for chunk in ([segment] for segment in segments) if alone else _side_by_side(segments, on_cpu=on_cpu):
        finite: list[dict[str, Tensor]] = []
        if selector in BY_SCORE:
            tokens, gains = _by_score(_prepare(chunk[0], given, selector, finite))
        elif selector in BY_COVERAGE:
            tokens, gains = _by_coverage(_prepare(chunk[0], given, selector, finite), chunk[0].picks)
        else:
            tokens, gains = _greedy(chunk, given, selector, finite)
        # Behind the picks, which among NaNs mean nothing but do no harm: on a GPU nobody waits here.
        images = [segment.image for segment in chunk]
        for name in finite[0]:
            check_finite([flags[name] for flags in finite], name, images, findings)
        results.append(Picks(tokens, gains.float()))
    return results


def _prepare(segment: Segment, given: Given, selector: str, finite_of_each: list[dict[str, Tensor]]) -> _Prepared:
    """Of one segment; what of it is finite is added to `finite_of_each`."""
    rows_NO = own_rows(segment.take(given.projected), arithmetic_dtype(given.projected[0]))
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
    finite_of_each.append(finite)
    return _Prepared(directions, score_N, weight_N)


def _by_score(prepared: _Prepared) -> tuple[Tensor, Tensor]:
    # By the score itself, as the weight may round two of them to one; unless all count as equal.
    key_N = torch.where(prepared.weight.amin() == 1, prepared.weight, prepared.score)
    order_N = key_N.sort(descending=True, stable=True).indices
    return order_N[None], prepared.weight[order_N][None]


def _by_coverage(prepared: _Prepared, num_picks: int) -> tuple[Tensor, Tensor]:
    size = prepared.weight.shape[0]
    similarity_NN = prepared.weight.new_empty(size, size)
    pairwise_distances(prepared.directions, similarity_NN)
    torch.sub(1.0, similarity_NN, out=similarity_NN)
    tokens_K, gains_K = coverage_picks(similarity_NN, prepared.weight, num_picks=num_picks)
    return tokens_K[None], gains_K[None]


def _greedy(
    chunk: Sequence[Segment], given: Given, selector: str, finite: list[dict[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Picks of all segments of `chunk`, side by side."""
    widest = max(segment.size for segment in chunk)
    keep_matrix = widest <= _matrix_tokens(on_cpu=given.projected[0].device.type == "cpu")
    for r, segment in enumerate(chunk):
        one = _prepare(segment, given, selector, finite)
        size = segment.size
        if r == 0:
            first_RN = one.weight.new_full((len(chunk), widest), -torch.inf)
            score_RNN = one.weight.new_empty((len(chunk), widest, widest) if keep_matrix else (0, 0, 0))
        matrix_NN = score_RNN[r, :size, :size] if keep_matrix else None
        if matrix_NN is not None:
            pairwise_distances(one.directions, matrix_NN)
        first_RN[r, :size] = nearest_distances(one.directions, matrix_NN) if selector in BY_DISTANCE else one.weight
        if matrix_NN is not None:
            if selector != "divprune":  # its weights are all one
                matrix_NN.mul_(one.weight)
            matrix_NN.fill_diagonal_(-torch.inf)
            if size < widest:
                score_RNN[r, :, size:] = -torch.inf

    def from_matrix(pick_R: Tensor, out_RN: Tensor) -> None:
        picks_R1N = pick_R.view(-1, 1, 1).expand(-1, 1, widest)
        torch.gather(score_RNN, 1, picks_R1N, out=out_RN.unsqueeze(1))

    def anew(pick_1: Tensor, out_1N: Tensor) -> None:
        # Without the matrix, a chunk is one segment.
        torch.mul(one.directions.distances_from(pick_1).T, one.weight, out=out_1N)
        out_1N.scatter_(1, pick_1.unsqueeze(1), -torch.inf)

    num_picks = max(segment.picks for segment in chunk)
    return greedy_picks(first_RN, from_matrix if keep_matrix else anew, num_picks=num_picks)


def _matrix_tokens(*, on_cpu: bool) -> int:
    return MATRIX_TOKENS if on_cpu else MATRIX_TOKENS_OF_GPU


def _side_by_side(segments: Sequence[Segment], *, on_cpu: bool) -> Iterator[list[Segment]]:
    """Runs of segments whose distance matrices, padded to the largest, fit SIDE_BY_SIDE_BYTES together."""
    most_bytes = SIDE_BY_SIDE_BYTES if on_cpu else SIDE_BY_SIDE_BYTES_OF_GPU
    chunk: list[Segment] = []
    widest = 0
    for segment in segments:
        widest = max(widest, segment.size)
        alone = widest > _matrix_tokens(on_cpu=on_cpu) or (len(chunk) + 1) * widest**2 * 4 > most_bytes
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
