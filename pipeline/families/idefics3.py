"""Idefics3 (and SmolVLM): square tiles and an overview, each a block of tokens behind its own tag; linear projector.

The projector is linear, so every token has the same Jacobian and the sensitivity tells nothing; selectors that need it
are refused. The tags are text of the prompt and stay there, even that of a tile of which no token was kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3Connector,
    Idefics3ForConditionalGeneration,
)

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint, EncodedImage, Family, KeptImage, Packed, Posed, Segment
from pipeline.families.loading import (
    captured,
    context_length,
    load_part,
    part_of,
    projector_form,
    shares_beginnings,
    takes_padding,
)
from pipeline.families.processing import TilePacker, image_processor, tile_bytes, unusable
from pipeline.families.prompting import Poser, chat_messages, load_tokenizer, render_prompt, tokenise
from zoo_ops import ProjectorSpec

PLACEHOLDER = "<image>"
AROUND, OVERVIEW = "<fake_token_around_image>", "<global-img>"
TEMPLATE = f"<|im_start|>User:{PLACEHOLDER}{{prompt}}<end_of_utterance>\nAssistant:"


def spec_of(connector: Any) -> ProjectorSpec:
    """The form of a stock connector behind its pixel shuffle."""
    return ProjectorSpec(connector.modality_projection.proj, None, None)


class TilePreparer:
    """Resizes and splits images as the checkpoint's image processor does, and leaves them in uint8."""

    def __init__(self, checkpoint: Checkpoint, kinds: Sequence[str]) -> None:
        self._processor = image_processor(checkpoint, kinds)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Pixels (rows + 1, cols, 3, side, side) as uint8: the tiles, then a last row that begins with the overview."""
        try:
            inputs = self._processor(
                image, do_rescale=False, do_normalize=False, return_row_col_info=True, return_tensors="np"
            )
        except (ValueError, ZeroDivisionError) as error:
            raise unusable(image, error) from error
        tiles = inputs["pixel_values"][0]
        rows, cols = int(np.ravel(inputs["rows"])[0]), max(1, int(np.ravel(inputs["cols"])[0]))
        whole = np.zeros(((rows + 1) * cols, *tiles.shape[1:]), np.uint8)
        whole[: len(tiles)] = tiles
        return whole.reshape(rows + 1, cols, *tiles.shape[1:])

    def prepared_bytes(self, width: int, height: int) -> int:
        """How many bytes `prepare` makes of an image of this size."""
        _, rows, cols = self._processor.get_number_of_image_patches(height, width)
        return int((rows + 1) * max(1, cols) * self._tile_bytes)

    @cached_property
    def _tile_bytes(self) -> int:
        return tile_bytes(self.prepare)


class TileEncoder:
    """Runs the vision tower and the connector, which is the projector."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        part: type[Any],
        kinds: Sequence[str],
    ) -> None:
        self._packer = TilePacker(image_processor(checkpoint, kinds), device, dtype)
        self._model = load_part(part, checkpoint, device, dtype).model
        self._patch_size = checkpoint.config.vision_config.patch_size
        self.projector = spec_of(self._model.connector)

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """See `Encoder`; the shapes are those of the prepared images, which begin with rows and columns of tiles."""
        tiles = [image.reshape(-1, *image.shape[2:])[: _num_tiles(image.shape)] for image in pixels]
        return replace(self._packer.pack(tiles, sizes), shapes=[image.shape for image in pixels])

    @torch.inference_mode()
    def encode(self, packed: Packed) -> list[EncodedImage]:
        """Encode all images in one pass of the tower over their tiles. Tokens are ranked within their tile."""
        inputs = self._packer.inputs(packed)
        # What `get_image_features` does, without its search for tiles that are padding, for which it waits.
        height, width = (side // self._patch_size for side in inputs.shape[-2:])
        whole = torch.ones(len(inputs), height, width, dtype=torch.bool, device=inputs.device)
        with captured(self._model.connector.modality_projection) as seen:
            output = self._model.vision_model(pixel_values=inputs, patch_attention_mask=whole, return_dict=True)
            self._model.connector(output.last_hidden_state)
        counts = [_num_tiles(shape) for shape in packed.shapes]
        parts = zip(seen.input.split(counts), seen.output.split(counts), packed.shapes, strict=True)
        return [_image(features, projected, shape[0] - 1, shape[1]) for features, projected, shape in parts]


def _num_tiles(shape: tuple[int, ...]) -> int:
    """The tiles of a prepared image of this shape, the overview included and the padding of its last row not."""
    return (shape[0] - 1) * shape[1] + 1


def _image(features_TnD: Tensor, projected_TnO: Tensor, rows: int, cols: int) -> EncodedImage:
    tiles, per_tile = features_TnD.shape[:2]
    side = int(per_tile**0.5)
    segments = [
        Segment(tile * per_tile, tile, side, side, row=tile // cols * side, col=tile % cols * side)
        for tile in range(rows * cols)
    ]
    segments.append(Segment((tiles - 1) * per_tile, tiles - 1, side, side))
    return EncodedImage(
        features_TnD.flatten(0, 1),
        projected_TnO.flatten(0, 1),
        segments,
        (max(rows, 1) * side, cols * side, tiles),
        groups_N=torch.arange(tiles).repeat_interleave(per_tile),
    )


class TileAnswerer:
    """Tokenizer and language model. In the prompt a tag stands before the kept tokens of every tile."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        positions: str | None = None,
        *,
        language: bool = True,
        part: type[Any],
        video: str | None = None,
    ) -> None:
        """Load.

        Args:
            language: load the language model too; without it this is a `Prompter`.
            part: the language side, see `part_of`.
            video: what stands for a video in a text, where the family takes videos.
        """
        assert positions in (None, "compact"), "answer_corpus refuses the others"
        self.tokenizer = load_tokenizer(checkpoint)
        self.image_token_id = checkpoint.config.image_token_id
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        if token != PLACEHOLDER:
            raise UserError(
                f"--model {checkpoint.name}: token {self.image_token_id}, its config's image token, is {token!r} in "
                f"its tokenizer, expected {PLACEHOLDER!r}; config and tokenizer do not belong together"
            )
        self._poser = Poser(checkpoint, self.tokenizer, self.render, video=video)
        self.context = context_length(checkpoint.config)
        self.width = checkpoint.config.get_text_config().hidden_size
        self._device, self._dtype = device, dtype
        self.model = load_part(part, checkpoint, device, dtype) if language else None
        if language:
            self.shares_beginnings, self.takes_padding = shares_beginnings(self.model), takes_padding(self.model)

    def render(self, prompt: Posed) -> str:
        """The text of a prompt, with one image placeholder."""
        return render_prompt(self.tokenizer, prompt, placeholder=PLACEHOLDER, default_template=TEMPLATE)

    def messages(self, prompt: Posed) -> list[dict[str, Any]]:
        """See `Prompter`."""
        return chat_messages(prompt, placeholder=PLACEHOLDER)

    def token_ids(self, prompt: Posed, image: KeptImage) -> list[int]:
        """Token ids of the prompt, with the tags of all tiles and K image tokens in the place of the image."""
        self._poser.ids(prompt)  # refuses what it must
        return tokenise(self.tokenizer, self.render(prompt).replace(PLACEHOLDER, _blocks(image)))

    def image_embeds(self, image: KeptImage) -> dict[str, Tensor]:
        """See `Prompter`: the kept features of all tiles."""
        return {"image_embeds": image.features_KO.to(self._device, self._dtype)}

    def image_inputs(self, images: Sequence[KeptImage], input_ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
        """Arguments that give the model the kept features where it expects its vision tower's output."""
        features: Any = [self.image_embeds(image)["image_embeds"] for image in images]
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}


def _blocks(image: KeptImage) -> str:
    """The text that stands for the image, as the model's processor writes it, with the kept tokens of every tile."""
    *tiles, overview = image.selection.segments
    per_tile = overview["rows"] * overview["cols"]
    kept = torch.bincount(image.indices_K // per_tile, minlength=len(tiles) + 1).tolist()
    text = ""
    for number, tile in enumerate(tiles):
        row, col = tile["row"] // tile["rows"], tile["col"] // tile["cols"]
        text += f"{AROUND}<row_{row + 1}_col_{col + 1}>" + PLACEHOLDER * kept[number]
        if number + 1 == len(tiles) or tiles[number + 1]["row"] != tile["row"]:
            text += "\n"
    return text + ("\n" if tiles else "") + f"{AROUND}{OVERVIEW}" + PLACEHOLDER * kept[-1] + AROUND


PROCESSORS = ("Idefics3ImageProcessor",)

FAMILY = Family(
    name="idefics3",
    preparer=partial(TilePreparer, kinds=PROCESSORS),
    encoder=partial(
        TileEncoder, part=part_of(Idefics3ForConditionalGeneration, "model.text_model", "lm_head"), kinds=PROCESSORS
    ),
    answerer=partial(
        TileAnswerer, part=part_of(Idefics3ForConditionalGeneration, "model.vision_model", "model.connector")
    ),
    projector=lambda config: spec_of(projector_form(Idefics3Connector, config)),
    projector_weights=r"(^|\.)connector\.",
    positions=("compact",),
)
