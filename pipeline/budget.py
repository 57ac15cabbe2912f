"""Token budgets as users write them: a count, a ratio, or all."""

import math
import re
from dataclasses import dataclass

from pipeline.errors import UserError

MAX_TOKENS = 10_000_000  # more than an image of any model has
_MAX_DIGITS = 20  # of a number that is read; one of more digits is over the limit anyway
_MAX_SHOWN = 40
_COUNT = re.compile("[0-9]+")


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
