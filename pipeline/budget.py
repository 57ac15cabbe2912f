"""Token budgets as users write them: a count, a ratio, or all."""

import math
from dataclasses import dataclass

from pipeline.errors import UserError


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
        if text.isdigit():
            value = float(text)
            if value >= 1:
                return Budget("count", value)
        else:
            value = float(text)
            if 0 < value <= 1:
                return Budget("ratio", value)
    except ValueError:
        pass
    raise UserError(f"{option} {text}: expected a count of at least 1 (64), a ratio over 0 and up to 1 (0.125), or all")
