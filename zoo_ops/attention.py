"""What a class token pays to each token, from the queries and keys that a vision tower computes anyway."""

import torch
from torch import Tensor

from zoo_ops.precision import own_rows
from zoo_ops.validate import check_floating, check_integer


@torch.no_grad()
def class_attention(query_BD: Tensor, keys_BTD: Tensor, *, num_heads: int) -> Tensor:
    """Attention of the class token, summed over the heads: (B, N), float32.

        a_n = sum_h softmax_t( q_h . k_ht / sqrt(D / heads) )_n

    The softmax runs over all T = N + 1 tokens, the class token among them; its own share is left out of the result.

    query_BD: of the class token, (B, D), D the width of the tower.  keys_BTD: of all tokens, the class token first.
    Both as the layer's projections give them, bias included, not yet scaled; any floating dtype.
    Computed in float32, so it differs from the tower's own attention by the rounding of the tower's dtype. The
    attention in an image depends on that image alone, to the last bit. Checked against the attentions that stock CLIP
    towers return (`output_attentions`); VisionZip (arXiv 2412.04467) and SCOPE (arXiv 2510.24214) take the same sum.
    Raises ValueError: wrong shapes, or a number of heads that does not divide D.
    """
    check_floating(query_BD, "query_BD", "BD")
    check_floating(keys_BTD, "keys_BTD", "BTD")
    check_integer(num_heads, "num_heads", 1)
    batch, width = query_BD.shape
    if (keys_BTD.shape[0], keys_BTD.shape[2]) != (batch, width) or keys_BTD.shape[1] < 2:
        raise ValueError(
            f"keys_BTD has shape {tuple(keys_BTD.shape)}, expected ({batch}, T, {width}) with T of at least 2, as "
            f"query_BD has shape {tuple(query_BD.shape)}; pass the keys of all tokens, the class token's first"
        )
    if width % num_heads:
        raise ValueError(f"num_heads is {num_heads}, expected a divisor of the width {width}")
    rows = []
    for query_D, keys_TD in zip(query_BD, keys_BTD, strict=True):
        query_Hd = own_rows(query_D, torch.float32).view(num_heads, -1)
        keys_THd = own_rows(keys_TD, torch.float32).view(-1, num_heads, width // num_heads)
        logits_HT = (keys_THd * query_Hd).sum(-1).T.contiguous() / (width // num_heads) ** 0.5
        rows.append(logits_HT.softmax(1).sum(0)[1:])
    return torch.stack(rows)
