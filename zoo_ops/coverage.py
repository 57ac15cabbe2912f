"""Facility location: greedy picks of the token by which the picked ones stand for most that none of them did before."""

import torch
from torch import Tensor

from zoo_ops.greedy import DUPLICATE_DISTANCE

# Gains recomputed at a time on a CPU, the most promising first; doubled while that does not settle a pick.
FIRST_ROWS = 32


def coverage_picks(similarity_NN: Tensor, weight_N: Tensor, *, num_picks: int) -> tuple[Tensor, Tensor]:
    """Picks and their gains, (num_picks,) each.

        gain_i   weight_i * (1 / N) sum_u max(0, similarity_ui - covered_u)
        covered  covered_u = max(0, max_{s picked} similarity_us),  never a token twice

    similarity_NN: exactly symmetric; what is below 1e-6 counts as no gain, so that duplicates of what is picked have
    a gain of exactly 0.  weight_N: at least 0.  Ties go to the smaller index.

    A gain never grows, so it is recomputed only for tokens whose last known gain is still as large as the best one
    (Minoux's accelerated greedy). It never grows in floating point either: each term, the order of the sum and the
    weight stay the same. On a GPU all gains are recomputed at every pick: looking at them would wait for the device.
    """
    size = weight_N.shape[0]
    covered_N = torch.zeros_like(weight_N)
    gain_N = _gains(similarity_NN, weight_N, covered_N)
    taken_N = torch.zeros(size, dtype=torch.bool, device=weight_N.device)
    picks, gains = [], []
    for pick in range(num_picks):
        if pick:
            if weight_N.device.type != "cpu":
                gain_N = _gains(similarity_NN, weight_N, covered_N)
            else:
                _settle(gain_N, taken_N, similarity_NN, weight_N, covered_N)
        # Of several maxima it names the first.
        best, chosen = gain_N.masked_fill(taken_N, -torch.inf).max(0)
        picks.append(chosen)
        gains.append(best)
        taken_N.index_fill_(0, chosen, True)
        covered_N = torch.maximum(covered_N, similarity_NN.index_select(0, chosen.unsqueeze(0)).squeeze(0))
    return torch.stack(picks), torch.stack(gains)


def _settle(gain_N: Tensor, taken_N: Tensor, similarity_NN: Tensor, weight_N: Tensor, covered_N: Tensor) -> None:
    """Recompute, in place, every gain that the largest could be, and those that could equal it."""
    known_N = taken_N.clone()
    best, rows = 0.0, FIRST_ROWS
    while True:
        # A gain of 0 stays 0, so it is known.
        open_N = gain_N.masked_fill(known_N, 0.0)
        candidates = int(((open_N >= best) & (open_N > 0)).sum())
        if candidates == 0:
            return
        top = open_N.topk(min(candidates, rows)).indices
        fresh = _gains(similarity_NN[top], weight_N[top], covered_N)
        gain_N[top] = fresh
        known_N[top] = True
        best, rows = max(best, float(fresh.amax())), 2 * rows


def _gains(similarity_RN: Tensor, weight_R: Tensor, covered_N: Tensor) -> Tensor:
    """Gains of the tokens whose similarities to all N are given, (R,)."""
    more_RN = torch.threshold_(similarity_RN - covered_N, DUPLICATE_DISTANCE, 0.0)
    return more_RN.sum(1).div_(covered_N.shape[0]).mul_(weight_R)
