"""Many independent questions behind one image prefix, each seeing the image as if it were asked alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from questions import LONG_TYPES, QUESTION_TYPES, Question
from vocabulary import BOS_ID, EOS_ID, TOKEN_ID

_PREFIX = (BOS_ID, TOKEN_ID["user"], TOKEN_ID[":"])
_TURN = [TOKEN_ID["assistant"], TOKEN_ID[":"]]
_END_WEIGHT = 0.1
_IGNORED = -100


def encode(text: str) -> list[int]:
    """Word ids of a text, as the exported tokenizer gives them without <s>."""
    return [TOKEN_ID[word] for word in re.findall(r"\w+|[^\w\s]", text.lower())]


@dataclass(frozen=True)
class PackedQuestions:
    """A batch of B images with K visual tokens each and T tokens of packed questions.

    prefix_ids (P,): the tokens before the image. ids (B, T); positions (B, P + K + T); mask additive (B, 1, L, L) with
    L = P + K + T; targets (B, T), -100 where nothing is learnt; weights (B, T). spans: per question its row, its type's
    index, and the slice of its targets.
    """

    prefix_ids: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    spans: tuple[tuple[int, int, slice], ...]


def pack_questions(
    questions: Sequence[Sequence[Question]], *, num_tokens: int, caption_weight: float = 0.3, with_bos: bool = True
) -> PackedQuestions:
    """Packs one list of questions per image behind `num_tokens` visual tokens."""
    blocks = [[(encode(q.prompt) + _TURN, encode(q.answer), q.type) for q in asked] for asked in questions]
    length = max(sum(len(prompt) + len(answer) for prompt, answer, _ in row) for row in blocks)
    prefix = _PREFIX if with_bos else _PREFIX[1:]
    start = len(prefix) + num_tokens
    shape = (len(blocks), length)
    ids, block_of = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    positions, targets = np.zeros(shape, np.int64), np.full(shape, _IGNORED, np.int64)
    weights = np.zeros(shape, np.float32)
    spans = []
    for row, row_blocks in enumerate(blocks):
        at = 0
        for number, (prompt, answer, kind) in enumerate(row_blocks, start=1):
            end, first = at + len(prompt) + len(answer), at + len(prompt) - 1
            ids[row, at:end] = prompt + answer
            block_of[row, at:end] = number
            positions[row, at:end] = start + np.arange(end - at)
            targets[row, first:end] = [*answer, EOS_ID]
            weights[row, first:end] = caption_weight if kind in LONG_TYPES else 1.0
            weights[row, end - 1] = _END_WEIGHT
            spans.append((row, QUESTION_TYPES.index(kind), slice(first, end)))
            at = end
    before = np.broadcast_to(np.arange(start), (len(blocks), start))
    block = torch.from_numpy(np.concatenate([np.zeros_like(before), block_of], axis=1))
    total = start + length
    visible = (block[:, None] == 0) | ((block[:, None] == block[:, :, None]) & (block[:, None] > 0))
    visible &= torch.ones(total, total, dtype=torch.bool).tril()
    visible |= torch.eye(total, dtype=torch.bool)
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill_(~visible, -torch.inf)
    return PackedQuestions(
        prefix_ids=torch.tensor(prefix),
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(np.concatenate([before, positions], axis=1)),
        mask=mask[:, None],
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights),
        spans=tuple(spans),
    )


def answer_logits(model: nn.Module, visual: torch.Tensor, packed: PackedQuestions) -> torch.Tensor:
    """Logits where a target stands, (targets, V), for projected visual tokens (B, K, 128)."""
    language = model.model.language_model
    prefix = language.embed_tokens(packed.prefix_ids).expand(len(visual), -1, -1)
    hidden = torch.cat([prefix, visual.to(prefix.dtype), language.embed_tokens(packed.ids)], dim=1)
    rotary = language.rotary_emb(hidden, position_ids=packed.positions)
    if torch.is_autocast_enabled("cpu"):
        rotary = tuple(part.to(torch.get_autocast_dtype("cpu")) for part in rotary)
    for layer in language.layers[:-1]:
        hidden = layer(hidden, attention_mask=packed.mask, position_embeddings=rotary, position_ids=packed.positions)
    # The last layer is needed where an answer is read off, so its attention sees all rows but its MLP only those.
    last, start = language.layers[-1], hidden.shape[1] - packed.ids.shape[1]
    attended, _ = last.self_attn(
        hidden_states=last.input_layernorm(hidden),
        position_embeddings=rotary,
        attention_mask=packed.mask,
    )
    chosen = packed.targets != _IGNORED
    answered = (hidden[:, start:] + attended[:, start:])[chosen]
    answered = answered + last.mlp(last.post_attention_layernorm(answered))
    return model.lm_head(language.norm(answered))


@torch.no_grad()
def teacher_forced_accuracy(
    model: nn.Module, visual: torch.Tensor, questions: Sequence[Sequence[Question]], *, batch_size: int = 50
) -> dict[str, float]:
    """Share of questions whose every answer token is the most likely one, by type: a quick stand-in for generating.

    Types that nothing was asked of are left out.
    """
    right: dict[str, list[bool]] = {kind: [] for kind in QUESTION_TYPES}
    for start in range(0, len(visual), batch_size):
        rows = visual[start : start + batch_size]
        packed = pack_questions(questions[start : start + batch_size], num_tokens=rows.shape[1])
        with torch.autocast("cpu", torch.bfloat16):
            best = answer_logits(model, rows, packed).argmax(-1)
        hit = torch.ones_like(packed.targets, dtype=torch.bool)
        chosen = packed.targets != _IGNORED
        hit[chosen] = best == packed.targets[chosen]
        for row, kind, span in packed.spans:
            right[QUESTION_TYPES[kind]].append(bool(hit[row, span].all()))
    return {kind: sum(hits) / len(hits) for kind, hits in right.items() if hits}
