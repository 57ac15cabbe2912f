"""Token budgets as users write them: a count, a ratio, or all; of answers also a mean, or a threshold on gains."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError

MAX_TOKENS = 10_000_000  # more than an image of any model has
_MAX_DIGITS = 20  # of a number that is read; one of more digits is over the limit anyway
_MAX_SHOWN = 40
_COUNT = re.compile("[0-9]+")
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
MEAN, GAIN = "mean:", "gain:"
MAX_GAIN = 2.0  # a gain is at most a weight of 1 times a cosine distance of 2


@dataclass(frozen=True)
class Budget:
    """How many visual tokens of an image to keep."""

    kind: str  # "count", "ratio" or "all"
    value: float = 0.0

    def of(self, num_tokens: int) -> int:
        """Tokens kept of an image with `num_tokens`: at least 1, at most all; ratios round halves up, as in zoo_ops."""
        if self.kind == "all":
            return num_tokens
        wanted = math.floor(self.value * num_tokens + 0.5) if self.kind == "ratio" else int(self.value)
        return min(num_tokens, max(1, wanted))

    def kept(self, num_tokens: int, gains: Sequence[float]) -> int:
        """Tokens kept of an image of which as many are stored as there are gains: never more than these."""
        return min(self.of(num_tokens), len(gains))


@dataclass(frozen=True)
class GainBudget:
    """As many tokens of an image as have a gain of at least the threshold, one threshold for all images.

        k = max(min_tokens, 1 + the picks from the second on with gain >= threshold)

    Gains do not increase from the second pick on, so these are the leading picks. Where tiles take turns they are
    counted over all of them, as in `zoo_ops.budget_by_gain`: a plain tile ends nothing.
    """

    threshold: float
    min_tokens: int = 1

    def kept(self, num_tokens: int, gains: Sequence[float]) -> int:
        """Tokens kept of an image with these gains, in pick order; an image with fewer than `min_tokens` keeps all."""
        assert len(gains) <= num_tokens, "a token is picked once"
        passing = 1 + sum(gain >= self.threshold for gain in gains[1:])
        return min(len(gains), max(self.min_tokens, passing))


@dataclass(frozen=True)
class MeanBudget:
    """A `GainBudget` of which not the threshold is given but the tokens that an image keeps on average."""

    tokens: float
    min_tokens: int = 1


AnswerBudget = Budget | GainBudget | MeanBudget


def parse_answer_budget(text: str, option: str, min_tokens: int = 1) -> AnswerBudget:
    """Read what `parse_budget` does, `mean:64` or `gain:0.2`.

    Raises:
        UserError: anything else, with what would be right.
    """
    for prefix, most in ((MEAN, float(MAX_TOKENS)), (GAIN, MAX_GAIN)):
        if text.startswith(prefix):
            number = text.removeprefix(prefix)
            value = float(number) if _NUMBER.fullmatch(number) else math.nan
            if prefix == MEAN and 1 <= value <= most:
                return MeanBudget(value, min_tokens)
            if prefix == GAIN and 0 < value <= most:
                return GainBudget(value, min_tokens)
            bounds = f"{MEAN} and 1 or more tokens" if prefix == MEAN else f"{GAIN} and a gain over 0, up to {most:g}"
            shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
            raise UserError(f"{option} {shown}: expected {bounds}, such as {prefix}{'64' if prefix == MEAN else '0.2'}")
    return parse_budget(text, option)


def parse_budget(text: str, option: str) -> Budget:
    """Read `64`, `0.125` or `all`.

    Raises:
        UserError: anything else, with what would be right.
    """
    if text == "all":
        return Budget("all")
    try:
        if _COUNT.fullmatch(text):
            value = int(text) if len(text) <= _MAX_DIGITS else MAX_TOKENS + 1
            if 1 <= value <= MAX_TOKENS:
                return Budget("count", value)
        elif text.isascii() and "_" not in text:
            share = float(text)
            if 0 < share <= 1:
                return Budget("ratio", share)
    except ValueError:
        pass
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    raise UserError(
        f"{option} {shown}: expected a count of 1 to {MAX_TOKENS:,} (64), a ratio over 0 and up to 1 (0.125), or all"
    )
