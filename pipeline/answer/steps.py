"""What happens between two steps of `generate`: tokens are drawn, by each row's own numbers, and stop strings end rows.

`generate` itself is always greedy. A draw leaves a row's drawn token alone as the likeliest, so that a batch holds rows
of any seed, and what is drawn in a row does not depend on the others.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from pipeline.answer.decoding import Decoding, stopped_at


def drawn_tokens(scores_BV: Tensor, numbers_B: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """The token (B,) of each row at its number in [0, 1).

    With p the softmax of scores / temperature, without the tokens outside of the nucleus, the token at number u is the
    first in the order of the vocabulary of which u * sum(p) < p_0 + ... + p_token. The nucleus holds the likeliest
    tokens down to the first with which they have the probability `top_p` together.
    """
    p_BV = (scores_BV.double() / temperature).softmax(-1)
    if top_p < 1:
        sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
        outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
        p_BV = p_BV.masked_fill(torch.zeros_like(outside_BV).scatter_(1, order_BV, outside_BV), 0.0)
    below_BV = p_BV.cumsum(-1)
    whole_B1 = below_BV[:, -1:]
    last_B = (below_BV < whole_B1).sum(-1)  # that has any probability
    found_B1 = torch.searchsorted(below_BV, numbers_B[:, None].to(below_BV) * whole_B1, right=True)
    return torch.minimum(found_B1.squeeze(1), last_B)


class Draw(LogitsProcessor):
    """Leaves each row the one token that its question draws.

    Args:
        prompt_ids: of the rows.
        decoding: its seed, temperature and top-p.
        begin: width of the prompts, padding included.
    """

    def __init__(self, prompt_ids: Sequence[str], decoding: Decoding, begin: int) -> None:
        self._prompt_ids, self._decoding, self._begin = prompt_ids, decoding, begin

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) of which all but one a row are minus infinity."""
        step = input_ids.shape[1] - self._begin
        numbers_B = torch.tensor([self._decoding.draw(one, step) for one in self._prompt_ids], dtype=torch.float64)
        tokens_B = drawn_tokens(
            scores,
            numbers_B.to(scores.device),
            temperature=self._decoding.temperature,
            top_p=self._decoding.top_p,
        )
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens_B[:, None], 0.0)


class StopStrings(StoppingCriteria):
    """Ends rows whose text holds a stop string.

    Args:
        tokenizer: of the checkpoint.
        stop: the strings.
        begin: width of the prompts, padding included.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], begin: int) -> None:
        self._tokenizer, self._stop, self._begin = tokenizer, stop, begin
        self._ended: set[int] = set()  # rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Which rows (B,) have ended."""
        for row, tokens in enumerate(input_ids[:, self._begin :].tolist()):
            if row not in self._ended:
                text = self._tokenizer.decode(tokens, skip_special_tokens=True)
                if stopped_at(text, self._stop) is not None:
                    self._ended.add(row)
        return torch.tensor([row in self._ended for row in range(len(input_ids))], device=input_ids.device)
