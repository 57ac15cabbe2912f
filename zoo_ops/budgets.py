"""How many tokens of each ranking to keep: a count, a ratio, a gain threshold, or a mean over the corpus."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_ops.ranking import Ranking
from zoo_ops.validate import check_integer


class MeanBudget(NamedTuple):
    """budgets_B: (B,) int64.  gain_threshold: what `budget_by_gain` needs to give the same budgets to these images,
    and fitting ones to images that come later."""

    budgets_B: Tensor
    gain_threshold: float


def budget_by_count(ranking: Ranking, count: int) -> Tensor:
    """min(count, ranked tokens) of each image: (B,) int64."""
    check_integer(count, "count", 1)
    _check_length(ranking, count, "count")
    return ranked_tokens(ranking).clamp_max(count)


def budget_by_ratio(ranking: Ranking, ratio: float, *, num_tokens_B: Tensor) -> Tensor:
    """Ratio times the tokens of each image, halves rounded up, at least one: (B,) int64.

    num_tokens_B: (B,) integers, tokens of each image before pruning.
    Raises ValueError where the ranking is shorter than that.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}, expected above 0 and at most 1, such as 0.1 for ten per cent")
    wanted_B = (num_tokens_B.to(ranking.indices_BK.device).double() * ratio + 0.5).floor().long().clamp_min(1)
    ranked_B = ranked_tokens(ranking)
    short = (wanted_B > ranked_B) & (ranked_B == ranking.indices_BK.shape[1])
    if bool(short.any()):
        _check_length(ranking, int(wanted_B.amax()), f"ratio {ratio}, in tokens,")
    return torch.minimum(wanted_B, ranked_B)


def budget_by_gain(ranking: Ranking, threshold: float, *, min_tokens: int = 1, max_tokens: int | None = None) -> Tensor:
    """1 + the picks from the second on with gain >= threshold, within min_tokens .. max_tokens: (B,) int64.

    Gains do not increase from the second pick on, so for one group these picks are a prefix. Where groups take turns
    the number is counted over all of them, and the prefix of that length shares it out evenly.
    """
    longest = ranking.indices_BK.shape[1]
    most = longest if max_tokens is None else max_tokens
    _check_bounds(ranking, min_tokens, most)
    if math.isnan(threshold):
        raise ValueError("threshold is NaN, expected a number; gains lie between 0 and 2")
    passing_B = (_later_gains(ranking) >= threshold).sum(1) + 1
    return torch.minimum(passing_B.clamp(min_tokens, most), ranked_tokens(ranking))


def budget_by_mean(ranking: Ranking, mean_tokens: float, *, min_tokens: int, max_tokens: int) -> MeanBudget:
    """Budgets of mean_tokens per image on average, between min_tokens and max_tokens, by one gain threshold.

        budget_b(t) = clip( 1 + #{k >= 2: gain_bk >= t}, min_tokens, max_tokens )
        threshold = the least t for which the mean of budget_b(t) over the images is at most mean_tokens

    The tokens go where their gains are largest, over the whole corpus: `ranking` holds all its images (ranked to at
    least max_tokens). Images with fewer tokens than min_tokens keep them all, and the others share what they leave.
    Ties at the threshold are all left out, so the mean can fall short by them.
    Raises ValueError: mean_tokens outside min_tokens .. max_tokens, a ranking shorter than max_tokens.
    """
    _check_bounds(ranking, min_tokens, max_tokens)
    if not min_tokens <= mean_tokens <= max_tokens:
        raise ValueError(
            f"mean_tokens is {mean_tokens}, expected between min_tokens={min_tokens} and max_tokens={max_tokens}; "
            "widen the bounds or move the mean"
        )
    later_gains = _later_gains(ranking).sort(dim=1, descending=True).values
    contested = later_gains[:, min_tokens - 1 : max_tokens - 1]
    contested = contested[contested >= 0]
    granted = ranked_tokens(ranking).clamp_max(min_tokens).sum()
    extra = math.floor(mean_tokens * ranking.indices_BK.shape[0]) - int(granted)
    if extra >= contested.numel():
        threshold = 0.0
    elif extra <= 0:
        threshold = math.inf
    else:
        cut = contested.sort(descending=True).values[extra - 1 : extra + 1]
        # The first gain left out ties with the last one taken: leave out both.
        above = contested[contested > cut[0]]
        threshold = float(cut[0]) if cut[1] < cut[0] else (float(above.amin()) if above.numel() else math.inf)
    return MeanBudget(budget_by_gain(ranking, threshold, min_tokens=min_tokens, max_tokens=max_tokens), threshold)


def ranked_tokens(ranking: Ranking) -> Tensor:
    """Tokens in each image's ranking, without the padding: (B,) int64."""
    return (ranking.indices_BK >= 0).sum(1)


def _later_gains(ranking: Ranking) -> Tensor:
    """Gains from the second pick on, (B, K - 1), -inf in the padding."""
    return ranking.gains_BK.masked_fill(ranking.indices_BK < 0, -torch.inf)[:, 1:]


def _check_bounds(ranking: Ranking, min_tokens: int, max_tokens: int) -> None:
    check_integer(min_tokens, "min_tokens", 1)
    check_integer(max_tokens, "max_tokens", min_tokens)
    _check_length(ranking, max_tokens, "max_tokens")


def _check_length(ranking: Ranking, wanted: int, name: str) -> None:
    longest = ranking.indices_BK.shape[1]
    if wanted > longest:
        raise ValueError(
            f"{name} is {wanted}, expected at most {longest}, the length of the ranking; rank with max_tokens={wanted}"
        )
