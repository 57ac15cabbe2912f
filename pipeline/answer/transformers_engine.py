"""The engine that generates with Transformers in its own process."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.answer.decoding import Decoding, finished
from pipeline.answer.engine import Question, Reply
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.answer.posing import prompt_ids
from pipeline.answer.steps import Draw, StopStrings
from pipeline.families.base import Answerer, KeptImage, UnusablePromptError, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.generation_settings import FORCED, end_tokens, runs_alone
from pipeline.families.loading import fixed_rotation_limit, forget_long_texts


@dataclass(frozen=True, slots=True)
class _Posed:
    """A question as tokens."""

    number: int  # place among the questions that were asked together
    image: KeptImage
    token_ids: list[int]  # rendered text, the image's tokens in their place
    prompt_id: str

    @property
    def last_position(self) -> int:
        """No token of the prompt has a position beyond this one, however kept tokens are numbered."""
        return len(self.token_ids) + self.image.selection.num_tokens + self.image.selection.num_structure

    def end_of_image(self, image_token_id: int) -> int:
        """The place behind the last image token."""
        return len(self.token_ids) - self.token_ids[::-1].index(image_token_id)

    def beginning(self, image_token_id: int) -> tuple[object, ...]:
        """What two questions must have alike to share the pass over their image.

        It is unique where nothing follows the image: a shared pass leaves no token to go on from.
        """
        end = self.end_of_image(image_token_id)
        own = self.number if end == len(self.token_ids) else None
        return (self.image.image_id, tuple(self.token_ids[:end]), own)


def load(settings: GenerateSettings, device: torch.device) -> Callable[[int], "TransformersEngine"]:
    """The engine at a batch size, over the language model of the settings."""
    checkpoint, family = open_checkpoint(settings.model)
    answerer = family.answerer(checkpoint, device, torch_dtype(settings.dtype), settings.positions)
    asked, tokens = settings.batch_size, settings.batch_tokens
    return lambda batch_size: TransformersEngine(
        answerer, batch_size=batch_size, batch_tokens=tokens * batch_size // asked
    )


class TransformersEngine:
    """An `Engine` over a family's language model. It knows no structured output.

    Args:
        answerer: the family's tokenizer and model, loaded.
        batch_size: questions that run together at most.
        batch_tokens: tokens that run together at most, unless a single question has more: questions x the longest of
            them with its answer.
    """

    def __init__(self, answerer: Answerer, *, batch_size: int, batch_tokens: int) -> None:
        self._answerer = answerer
        self._batch_size, self._batch_tokens = batch_size, batch_tokens

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Reply]:
        """Replies to questions, in their order.

        Questions about one image run together, and images of similar length run beside each other.
        """
        replies: dict[int, Reply] = {}
        posed: list[_Posed] = []
        for number, question in enumerate(questions):
            try:
                ids = prompt_ids(self._answerer, question, decoding)
                posed.append(_Posed(number, question.image, ids, question.prompt_id))
            except UnusablePromptError as error:
                replies[number] = Reply.refusal(str(error))
        place_of: dict[str, int] = {}
        for question in questions:
            place_of.setdefault(question.image.image_id, len(place_of))

        def order(one: _Posed) -> tuple[int, ...]:
            return len(one.image.indices_K), place_of[one.image.image_id], len(one.token_ids), one.number

        ends = end_tokens(self._answerer.model.generation_config)
        for chunk in self._chunks(sorted(posed, key=order), decoding.max_new_tokens):
            started = time.perf_counter()
            outputs = _generate(self._answerer, chunk, decoding, ends)
            seconds = (time.perf_counter() - started) / len(chunk)
            for one, token_ids in zip(chunk, outputs, strict=True):
                found = finished(self._answerer.tokenizer, token_ids, ends, decoding.stop)
                replies[one.number] = Reply(found.text, found.token_ids, found.finish_reason, seconds)
        return [replies[number] for number in range(len(questions))]

    def _chunks(self, posed: Sequence[_Posed], max_new_tokens: int) -> Iterator[Sequence[_Posed]]:
        """Questions that run together; one at a time where another row, or padding, could change an answer.

        Long questions, of which `batch_size` would be too many tokens, run beside each other and not beside shorter
        ones, which they would pad to their length.
        """
        model = self._answerer.model
        alone = runs_alone(model.generation_config) or not self._answerer.takes_padding
        limit = 0 if alone else fixed_rotation_limit(model)
        together: list[_Posed] = []
        long: list[_Posed] = []
        apart: list[_Posed] = []
        for one in posed:
            is_apart = limit is not None and one.last_position + max_new_tokens >= limit
            is_long = self._batch_size * (len(one.token_ids) + max_new_tokens) > self._batch_tokens
            (apart if is_apart else long if is_long else together).append(one)
        for begin in range(0, len(together), self._batch_size):
            yield together[begin : begin + self._batch_size]
        similar = sorted(long, key=lambda one: len(one.token_ids).bit_length())  # within a factor of two
        yield from self._bounded(similar, max_new_tokens)
        for one in apart:
            forget_long_texts(model)
            yield [one]

    def _bounded(self, posed: Sequence[_Posed], max_new_tokens: int) -> Iterator[Sequence[_Posed]]:
        """Questions in the order given, as many together as there may be tokens together."""
        chunk: list[_Posed] = []
        longest = 0
        for one in posed:
            longest = max(longest, len(one.token_ids) + max_new_tokens)
            if chunk and (len(chunk) == self._batch_size or (len(chunk) + 1) * longest > self._batch_tokens):
                yield chunk
                chunk, longest = [], len(one.token_ids) + max_new_tokens
            chunk.append(one)
        if chunk:
            yield chunk


@torch.inference_mode()
def _generate(answerer: Answerer, posed: Sequence[_Posed], decoding: Decoding, ends: Sequence[int]) -> list[list[int]]:
    """Generated token ids of each question; behind the end of an answer there may be more, which mean nothing.

    Questions that begin alike, up to and including their image, share one pass over that beginning: its cache is
    computed once and copied to each of them.
    """
    pad = _padding(answerer, ends)
    device = answerer.model.device
    owners: dict[tuple[object, ...], int] = {}  # beginning -> its number among the distinct beginnings
    beginnings = [owners.setdefault(one.beginning(answerer.image_token_id), len(owners)) for one in posed]
    shared: dict[str, Any] = {}
    if len(owners) == len(posed) or not answerer.shares_beginnings:
        ids, mask = _left_padded([one.token_ids for one in posed], pad, device)
    else:
        firsts = [posed[beginnings.index(number)] for number in range(len(owners))]
        cuts = [one.end_of_image(answerer.image_token_id) for one in firsts]
        ids, mask = _left_padded([one.token_ids[:cut] for one, cut in zip(firsts, cuts, strict=True)], pad, device)
        inputs = answerer.image_inputs([one.image for one in firsts], ids, mask)
        inputs.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp_min(0))
        cache = answerer.model(
            input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **inputs
        ).past_key_values
        rows = torch.tensor(beginnings, device=device)
        cache.batch_select_indices(rows)
        shared = {"past_key_values": cache}
        tails = [one.token_ids[cuts[number] :] for one, number in zip(posed, beginnings, strict=True)]
        tail_ids, tail_mask = _left_padded(tails, pad, device)
        ids, mask = torch.cat([ids[rows], tail_ids], 1), torch.cat([mask[rows], tail_mask], 1)
    inputs = answerer.image_inputs([one.image for one in posed], ids, mask)
    if shared:
        del inputs["mm_encoder_outputs"]
    width = ids.shape[1]
    output = answerer.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=pad,
        logits_processor=[] if decoding.is_greedy else [Draw([one.prompt_id for one in posed], decoding, width)],
        stopping_criteria=[StopStrings(answerer.tokenizer, decoding.stop, width)] if decoding.stop else [],
        **FORCED,
        **inputs,
        **shared,
    )
    generated: list[list[int]] = output[:, width:].tolist()
    return generated


def _padding(answerer: Answerer, ends: Sequence[int]) -> int:
    """A token id for places that are masked or behind an answer's end; the checkpoint's own may be no token at all."""
    size = answerer.model.get_input_embeddings().num_embeddings
    candidates = (answerer.model.generation_config.pad_token_id, *ends, 0, 1)
    return next(t for t in candidates if t is not None and 0 <= t < size and t != answerer.image_token_id)


def _left_padded(sequences: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) and attention mask of sequences of different length."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)
