"""The answering side of the families whose positions have one dimension.

Kept tokens and newlines form one sequence, which stands in place of the image in the prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint, KeptImage, Posed
from pipeline.families.loading import context_length, load_part, part_of, shares_beginnings, takes_padding
from pipeline.families.prompting import Poser, chat_messages, load_tokenizer, render_prompt


def kept_places(image: KeptImage) -> Tensor:
    """Places (K,) of the kept tokens in the packed sequence of all N + S tokens."""
    structure = torch.tensor(image.selection.structure, dtype=torch.int64)
    free = torch.ones(image.selection.num_tokens + len(structure), dtype=torch.bool)
    free[structure] = False
    return free.nonzero().squeeze(1)[image.indices_K]


class PackedAnswerer:
    """Tokenizer and language model of a family whose images are one run of tokens with one-dimensional positions.

    With positions `compact` the kept tokens are numbered consecutively. With `original` they keep the positions that
    they had before pruning, and the text behind them begins where it began then.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        positions: str | None = None,
        *,
        language: bool = True,
        part: type[Any],
        placeholder: str,
        default_template: str,
        inline: str | None = None,
        expand: Callable[[str], str] = lambda text: text,
        newline: Callable[[Any], Tensor] | None = None,
        token_types: Callable[[Tensor], Tensor] | None = None,
        as_list: bool = True,
        add_special_tokens: bool = True,
        video: str | None = None,
    ) -> None:
        """Load tokenizer and language model.

        Args:
            language: load the language model too; without it this is a `Prompter`.
            part: the language side, see `part_of`.
            placeholder: what stands for the image in the text of the prompt.
            default_template: for checkpoints without a chat template.
            inline: an image inside the user's text, placeholder included.
            expand: what the model's processor makes of the rendered text, before it repeats the image token.
            newline: the newline embedding of the loaded model, where the family has one.
            token_types: (which tokens are of the image) -> token types, for models that attend by them.
            as_list: the model takes a list of feature tensors; else one tensor.
            add_special_tokens: the model's processor lets its tokenizer add them.
            video: what stands for a video in a text, where the family takes videos.
        """
        self.tokenizer = load_tokenizer(checkpoint)
        self.image_token_id = checkpoint.config.image_token_id
        image_token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        if not isinstance(image_token, str) or image_token not in expand(placeholder):
            raise UserError(
                f"--model {checkpoint.name}: token {self.image_token_id}, its config's image token, is {image_token!r} "
                f"in its tokenizer, expected {expand(placeholder)!r}; config and tokenizer do not belong together"
            )
        self._placeholder, self._template, self._inline = placeholder, default_template, inline
        self._expand, self._token_types, self._as_list = expand, token_types, as_list
        self._poser = Poser(checkpoint, self.tokenizer, self.render, add_special_tokens=add_special_tokens, video=video)
        self.context = context_length(checkpoint.config)
        self.width = checkpoint.config.get_text_config().hidden_size
        self._device, self._dtype = device, dtype
        self._positions = positions or "compact"
        self.model = load_part(part, checkpoint, device, dtype) if language else None
        if language:
            self.shares_beginnings = token_types is None and shares_beginnings(self.model)
            self.takes_padding = takes_padding(self.model)
        self._newline_O: Tensor | None = None
        if newline is not None:
            without = part_of(part, "model.language_model", "lm_head")
            self._newline_O = newline(self.model or load_part(without, checkpoint, device, dtype)).detach()

    def render(self, prompt: Posed) -> str:
        """The prompt with one image placeholder, in the checkpoint's chat template or, without one, in the family's."""
        text = render_prompt(
            self.tokenizer,
            prompt,
            placeholder=self._placeholder,
            default_template=self._template,
            inline=self._inline,
        )
        return self._expand(text)

    def messages(self, prompt: Posed) -> list[dict[str, Any]]:
        """See `Prompter`."""
        return chat_messages(prompt, placeholder=self._placeholder, inline=self._inline)

    def token_ids(self, prompt: Posed, image: KeptImage) -> list[int]:
        """Token ids of the prompt, with K + S image tokens in the place of the image."""
        ids = self._poser.ids(prompt)
        place = ids.index(self.image_token_id)
        count = len(image.indices_K) + image.selection.num_structure
        return ids[:place] + [self.image_token_id] * count + ids[place + 1 :]

    def image_embeds(self, image: KeptImage) -> dict[str, Tensor]:
        """See `Prompter`: the kept features with every newline at its place between them."""
        return {"image_embeds": self._sequence(image)}

    def image_inputs(self, images: Sequence[KeptImage], input_ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
        """Arguments that give the model kept features and newlines where it expects its vision tower's output."""
        features = [self._sequence(image) for image in images]
        output = BaseModelOutputWithPooling(pooler_output=features if self._as_list else torch.cat(features))  # type: ignore[arg-type]
        inputs: dict[str, Any] = {"mm_encoder_outputs": {"image": output}}
        if self._token_types is not None:
            inputs["token_type_ids"] = self._token_types(input_ids_BT == self.image_token_id)
        if self._positions == "original":
            inputs["position_ids"] = self._original_positions(images, input_ids_BT, mask_BT)
        return inputs

    def _sequence(self, image: KeptImage) -> Tensor:
        """Features (K + S, O) of the kept tokens, with every newline at its place between them."""
        features_KO = image.features_KO.to(self._device, self._dtype)
        structure = image.selection.structure
        if not structure:
            return features_KO
        assert self._newline_O is not None, "only families with a newline have structure tokens"
        newlines_SO = self._newline_O.to(features_KO).expand(len(structure), -1)
        order = torch.cat([kept_places(image), torch.tensor(structure)]).argsort()
        return torch.cat([features_KO, newlines_SO])[order.to(features_KO.device)]

    def _original_positions(self, images: Sequence[KeptImage], input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        positions_BT = torch.zeros_like(input_ids_BT)
        for row, image in enumerate(images):
            structure = torch.tensor(image.selection.structure, dtype=torch.int64)
            places = torch.cat([kept_places(image), structure]).sort().values.to(input_ids_BT.device)
            length = image.selection.num_tokens + len(structure)
            positions_BT[row, mask_BT[row].bool()] = around_image(
                input_ids_BT[row, mask_BT[row].bool()] == self.image_token_id, places, length
            )
        return positions_BT


def around_image(is_image_T: Tensor, places: Tensor, length: int) -> Tensor:
    """Positions of a prompt whose image tokens lie at `places` (..., K) from where the image begins and span `length`.

    The text before the image is numbered from 0. The text behind it goes on from the image's first position plus
    `length`.
    """
    start = int(is_image_T.int().argmax())
    count = places.shape[-1]
    before = torch.arange(start, device=is_image_T.device)
    after = torch.arange(len(is_image_T) - start - count, device=is_image_T.device) + start + length
    leading = places.shape[:-1]
    return torch.cat([before.expand(*leading, -1), places + start, after.expand(*leading, -1)], dim=-1)
