"""Samples beside each other: kept features padded to one length, and prompts with their answers as token ids."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.answer.stage import posed
from pipeline.datasets.torch_dataset import Sample
from pipeline.errors import UserError
from pipeline.families.base import KeptImage, Posed, UnusablePromptError
from pipeline.families.prompting import tokenise
from schemas.stored import StoredPrompt

IGNORED = -100  # a label that nothing is learnt from, as Transformers' losses know it


class Tokens(Protocol):
    """What makes token ids of prompts; the `Answerer` of every family does."""

    tokenizer: Any  # a Transformers tokenizer
    image_token_id: int

    def token_ids(self, prompt: Posed, image: KeptImage) -> list[int]:
        """The full prompt, an image token for every kept and structure token. Raises `UnusablePromptError`."""


def first_reference(prompt: StoredPrompt) -> str:
    """The answer that is learnt, if nothing else is said.

    Raises:
        UserError: the prompt has none.
    """
    if not prompt.references:
        raise UserError(
            f"prompt {prompt.prompt_id} has no reference that could be learnt; give `answer`, which says what is "
            "learnt of a prompt, or prune a corpus with references"
        )
    return prompt.references[0]


class Collate:
    """Makes of B samples a dictionary of tensors and lists.

    | key | what |
    |---|---|
    | `features` (B, K, O) | kept features in raster order, zeros behind the last one of an image |
    | `features_mask` (B, K) | bool: where there is one |
    | `indices` (B, K) | int64: which token of the image it is; -1 behind the last one |
    | `deepstack.<level>` (B, K, O) | further rows of each token, where the family has them |
    | `selections` | `StoredSelection` of each image: its size in tokens, its grid, its structure tokens |
    | `image_id`, `prompt_id`, `prompt`, `references` | lists |
    | `input_ids`, `attention_mask` (B, T) | int64, with `tokens`: prompts, an image token for each row of their image |
    | `labels` (B, T) | int64, with `answer`: the answers behind their prompts; -100 elsewhere |
    """

    def __init__(
        self,
        tokens: Tokens | None = None,
        *,
        answer: Callable[[StoredPrompt], str] | None = None,
        pad_token_id: int = 0,
    ) -> None:
        """Prepare.

        Args:
            tokens: makes token ids of prompts; None: there are none in the batch.
            answer: what is learnt of a prompt, `first_reference` for example; None: nothing, prompts end where the
                answer would begin. Its tokens are those of the answer alone, and the end of the sequence.
            pad_token_id: behind the last token of a prompt; it is masked.
        """
        if answer is not None and tokens is None:
            raise UserError("answers are learnt as token ids: give `tokens` too, the Answerer of the model's family")
        self._tokens, self._answer, self._pad = tokens, answer, pad_token_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Lay samples beside each other.

        Raises:
            UserError: a prompt can't be posed, or has no answer; says which.
        """
        images = [sample.image for sample in samples]
        prompts = [sample.prompt for sample in samples]
        batch: dict[str, Any] = {
            "features": pad_sequence([image.features_KO for image in images], batch_first=True),
            "features_mask": _padded([[1] * len(image.indices_K) for image in images], 0).bool(),
            "indices": pad_sequence([image.indices_K for image in images], batch_first=True, padding_value=-1),
            **{
                name: pad_sequence([image.extras_KO[name] for image in images], batch_first=True)
                for name in images[0].extras_KO
            },
            "selections": [image.selection for image in images],
            "image_id": [prompt.image_id for prompt in prompts],
            "prompt_id": [prompt.prompt_id for prompt in prompts],
            "prompt": [prompt.prompt for prompt in prompts],
            "references": [prompt.references for prompt in prompts],
        }
        if self._tokens is not None:
            batch |= self._text(self._tokens, samples)
        return batch

    def _text(self, tokens: Tokens, samples: Sequence[Sample]) -> dict[str, Tensor]:
        asked, learnt = [], []
        for sample in samples:
            try:
                asked.append(tokens.token_ids(posed(sample.prompt), sample.image))
                learnt.append(self._answer_ids(tokens, sample.prompt))
            except UnusablePromptError as error:
                raise UserError(
                    f"prompt {sample.prompt.prompt_id} can't be posed ({error}); take it out of the corpus and prune "
                    "that into another --output"
                ) from error
        full = [prompt + answer for prompt, answer in zip(asked, learnt, strict=True)]
        text = {
            "input_ids": _padded(full, self._pad),
            "attention_mask": _padded([[1] * len(ids) for ids in full], 0),
        }
        if self._answer is not None:
            labels = [[IGNORED] * len(prompt) + answer for prompt, answer in zip(asked, learnt, strict=True)]
            text["labels"] = _padded(labels, IGNORED)
        return text

    def _answer_ids(self, tokens: Tokens, prompt: StoredPrompt) -> list[int]:
        if self._answer is None:
            return []
        answer = self._answer(prompt)
        if not isinstance(answer, str):
            raise UserError(f"prompt {prompt.prompt_id}: `answer` gave {answer!r}, expected a text")
        ids = tokenise(tokens.tokenizer, answer, add_special_tokens=False)
        if tokens.image_token_id in ids:
            raise UserError(
                f"prompt {prompt.prompt_id}: the answer {answer[:60]!r} holds the token that stands for the image; "
                "give another `answer`, which says what is learnt of a prompt"
            )
        return [*ids, tokens.tokenizer.eos_token_id]


def images_of(batch: dict[str, Any]) -> list[KeptImage]:
    """The images of a batch, as `Answerer.image_inputs` takes them: views of the padded tensors, on their device."""
    extras = [name for name in batch if name.startswith("deepstack.")]
    images = []
    for row, (image_id, selection) in enumerate(zip(batch["image_id"], batch["selections"], strict=True)):
        mask_K = batch["features_mask"][row]
        rows = {name: batch[name][row][mask_K] for name in extras}
        features_KO, indices_K = batch["features"][row][mask_K], batch["indices"][row][mask_K]
        images.append(KeptImage(image_id, selection, indices_K.cpu(), features_KO, rows))
    return images


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=value)
