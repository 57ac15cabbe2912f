"""Greedy picks: the token whose weight times distance to the picked ones is largest, again and again."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Cosine distances below this are rounding of a float32 product: such tokens are duplicates, their distance is 0.
DUPLICATE_DISTANCE = 1e-6
# Blocks of the symmetric distance matrix: those above the diagonal are mirrored, not computed.
MIRROR_BLOCKS = 4
# Rows at a time when each looks for its nearest neighbour.
NEAREST_ROWS = 1024


class Directions(NamedTuple):
    """Rows and one over their norms: what cosines are made of, without a second copy of the rows.

    inverse_N: 0 for rows of norm zero, so that they are at distance 1 from every other.
    """

    rows_NO: Tensor
    inverse_N: Tensor

    @classmethod
    def of(cls, rows_NO: Tensor, norms_N: Tensor) -> "Directions":
        inverse_N = norms_N.clamp_min(torch.finfo(rows_NO.dtype).tiny).reciprocal()
        return cls(rows_NO, inverse_N.masked_fill_(norms_N == 0, 0))

    def cosines(self, rows: slice, others: slice | Tensor) -> Tensor:
        """Cosines of `rows` to `others`."""
        products = self.rows_NO[rows] @ self.rows_NO[others].T
        return products.mul_(self.inverse_N[rows].unsqueeze(1)).mul_(self.inverse_N[others])

    def distances_from(self, others: slice | Tensor) -> Tensor:
        """1 - cos of every row to `others`: (N, M); duplicates at exactly 0."""
        return _as_distances(self.cosines(slice(None), others))

    def mean_cosines(self) -> Tensor:
        """Mean cosine of every row to the other rows, (N,); 0 for a single row."""
        size = self.rows_NO.shape[0]
        to_all_N = (self.rows_NO @ (self.inverse_N @ self.rows_NO)) * self.inverse_N
        # A row's cosine to itself is 1, or 0 for a row of norm zero.
        return (to_all_N - (self.inverse_N > 0).to(to_all_N.dtype)) / max(size - 1, 1)


def pairwise_distances(directions: Directions, out_NN: Tensor) -> None:
    """1 - cos between all rows, written to `out_NN`; exactly symmetric, duplicates at exactly 0."""
    size = out_NN.shape[0]
    # A GPU has the product sooner than the launches of several.
    step = size if out_NN.device.type != "cpu" else -(-size // MIRROR_BLOCKS)
    for start in range(0, size, step):
        stop = min(start + step, size)
        block = directions.cosines(slice(start, size), slice(start, stop))
        # The square on the diagonal too: its lower half, twice.
        block[: stop - start] = block[: stop - start].tril() + block[: stop - start].tril(-1).T
        out_NN[start:, start:stop] = block
        out_NN[start:stop, stop:] = block[stop - start :].T
    _as_distances(out_NN)


def nearest_distances(directions: Directions, matrix_NN: Tensor | None) -> Tensor:
    """Distance of every row to its nearest other row; 1 when there is no other. Read from `matrix_NN`, if given."""
    size = directions.rows_NO.shape[0]
    if size == 1:
        return torch.ones_like(directions.inverse_N)
    if matrix_NN is not None:
        return matrix_NN.clone().fill_diagonal_(torch.inf).amin(0)
    parts = []
    for start in range(0, size, NEAREST_ROWS):
        block = directions.distances_from(slice(start, start + NEAREST_ROWS))
        block.diagonal(-start).fill_(torch.inf)
        parts.append(block.amin(0))
    return torch.cat(parts)


def _as_distances(cosines: Tensor) -> Tensor:
    torch.sub(torch.ones_like(cosines[:1, :1]), cosines, out=cosines)
    return torch.threshold_(cosines, DUPLICATE_DISTANCE, 0.0)


def greedy_picks(
    first_RN: Tensor, scores_after: Callable[[Tensor, Tensor], None], *, num_picks: int
) -> tuple[Tensor, Tensor]:
    """Picks and their scores, (R, num_picks) each, of R independent rows side by side.

        first pick   argmax_i first_i
        next picks   argmax_i  min_{j picked} score_ij,    score_ij = weight_i * distance(i, j), -inf for i = j

    which is argmax_i  weight_i * min_{j picked} distance(i, j), never a token twice, to the last bit: rounding keeps
    the order of products with the same weight. So a pick is three launches, whatever R is: the largest scores, the
    scores after these picks, and the smaller ones of those and the ones before.

    first_RN: -inf where a row has no token.  scores_after: writes the scores of all tokens (R, N), -inf where a row has
    no token, after picks (R,) into its second argument.
    Ties go to the smaller index. A row with fewer tokens than num_picks repeats itself at score -inf.
    """
    rows = first_RN.shape[0]
    picks_KR = torch.empty(num_picks, rows, dtype=torch.int64, device=first_RN.device)
    gains_KR = first_RN.new_empty(num_picks, rows)
    score_RN, after_RN = first_RN, torch.empty_like(first_RN)
    for pick in range(num_picks):
        # Of several maxima it names the first.
        torch.max(score_RN, dim=1, out=(gains_KR[pick], picks_KR[pick]))
        if pick + 1 == num_picks:
            break
        if pick == 0:
            score_RN = torch.empty_like(first_RN)
            scores_after(picks_KR[0], score_RN)
        else:
            scores_after(picks_KR[pick], after_RN)
            torch.minimum(score_RN, after_RN, out=score_RN)
    return picks_KR.T, gains_KR.T
