"""What the Qwen-VL families share: images of any size, patches merged two by two, positions on the image's grid."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import get_vision_position_ids

from pipeline.errors import UserError
from pipeline.families.answering import around_image
from pipeline.families.base import Checkpoint, EncodedImage, KeptImage, Packed, Posed, Segment
from pipeline.families.loading import captured, context_length, load_part, shares_beginnings, takes_padding
from pipeline.families.processing import NormalisingTable, image_processor, unusable
from pipeline.families.prompting import Poser, chat_messages, load_tokenizer, render_prompt
from zoo_ops import ProjectorSpec, host_buffer, upload

PROCESSORS = ("Qwen2VLImageProcessor",)
PLACEHOLDER, VIDEO = "<|image_pad|>", "<|video_pad|>"
INLINE = "<|vision_start|><|image_pad|><|vision_end|>"
# What the tower is told and reads on the host; the rest goes to the device.
ON_THE_HOST = ("cu_window_seqlens",)
TEMPLATE = f"<|im_start|>user\n{INLINE}{{prompt}}<|im_end|>\n<|im_start|>assistant\n"


class GridPreparer:
    """Resizes images as the checkpoint's image processor does, and leaves them in uint8."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._processor = image_processor(checkpoint, PROCESSORS)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The resized pixels (3, height, width) as uint8."""
        processor = self._processor
        pixels = processor.process_image(image, do_convert_rgb=processor.do_convert_rgb)
        if not processor.do_resize:
            return np.ascontiguousarray(pixels)
        factor = processor.patch_size * processor.merge_size
        try:
            return processor.resize(pixels, size=processor.size, resample=processor.resample, factor=factor)
        except (ValueError, ZeroDivisionError) as error:
            raise unusable(image, error) from error

    def prepared_bytes(self, width: int, height: int) -> int:
        """How many bytes `prepare` makes of an image of this size."""
        processor = self._processor
        if not processor.do_resize:
            return 3 * width * height
        try:
            patches: int = processor.get_number_of_image_patches(height, width)
        except ValueError:  # an aspect ratio that `prepare` refuses too
            return 0
        return 3 * patches * int(processor.patch_size) ** 2


class GridEncoder:
    """Runs the vision tower with its merger, which is the projector."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        part: type[Any],
        spec_of: Callable[[Any], ProjectorSpec],
        facts: Callable[[Any, Tensor], Mapping[str, Tensor]] = lambda _tower, _grid_B3: {},
    ) -> None:
        """Load.

        Args:
            part: the vision side, see `part_of`.
            spec_of: the merger's form.
            facts: (tower, image_grid_thw) -> arguments of the tower beside the position ids, which it would make itself
                of values that it asks the device for; among them `window_index` where the merger reads the tokens in
                another order than that of the image's raster.
        """
        self._processor = image_processor(checkpoint, PROCESSORS)
        self._table = NormalisingTable(self._processor, device, dtype)
        self._device = device
        self._model = load_part(part, checkpoint, device, dtype).model
        self._facts = facts
        self._tower = self._model.visual
        self._merge = self._tower.spatial_merge_size
        self.projector = spec_of(self._tower.merger)

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """See `Encoder`; the pixels are patches (P, 3, side * side), the shapes the images' grids of patches.

        A patch of the model has several times the same pixels, one behind the other, as if the image were a film; here
        it has them once.
        """
        side, patches, grids = self._processor.patch_size, [], []
        for image in pixels:
            flat, height, width = self._processor.patchify(
                image, patch_size=side, merge_size=self._processor.merge_size, temporal_patch_size=1
            )
            patches.append(flat)
            grids.append((1, height, width))
        buffer = host_buffer((sum(map(len, patches)), 3, side * side), torch.uint8, self._device)
        np.concatenate(patches, out=buffer.view(len(buffer), -1).numpy(), casting="unsafe")
        grid_B3 = torch.tensor(grids)
        position_ids = get_vision_position_ids(grid_B3, self._merge)
        return Packed(buffer, grids, list(sizes), {"position_ids": position_ids, **self._facts(self._tower, grid_B3)})

    def _inputs(self, packed: Packed) -> Tensor:
        patches = self._table(upload(packed.pixels, self._device), 1)
        frames = self._processor.temporal_patch_size
        return patches.unsqueeze(2).expand(-1, -1, frames, -1).reshape(len(patches), -1)

    @torch.inference_mode()
    def encode(self, packed: Packed) -> list[EncodedImage]:
        """Encode all images in one pass of the tower over their patches."""
        inputs = self._inputs(packed)
        # The grid stays on the host, where the model reads it, number by number.
        grid_B3 = torch.tensor(packed.shapes)
        facts = {
            name: fact if name in ON_THE_HOST else upload(fact, self._device) for name, fact in packed.facts.items()
        }
        with captured(self._tower.merger) as seen:
            output = self._model.get_image_features(inputs, grid_B3, **facts)
        features = seen.input.reshape(-1, self._merge**2 * seen.input.shape[-1])
        if "window_index" in facts:
            features = features[facts["window_index"].argsort()]
        images = []
        parts = features.split([len(rows) for rows in output.pooler_output])
        levels = getattr(output, "deepstack_features", None) or []
        for number, (features_ND, projected_NO) in enumerate(zip(parts, output.pooler_output, strict=True)):
            _, height, width = packed.shapes[number]
            rows, cols = height // self._merge, width // self._merge
            images.append(
                EncodedImage(
                    features_ND,
                    projected_NO,
                    [Segment(0, 0, rows, cols)],
                    (rows, cols, 1),
                    image_grid_thw=(1, height, width),
                    extras_NO={f"deepstack.{level}": rows_of[number] for level, rows_of in enumerate(levels)},
                )
            )
        return images


class GridAnswerer:
    """Tokenizer and language model of a family whose kept tokens always stay where they are on the image's grid.

    Position ids go along with the features, because without them the model would silently count in one dimension.
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
        output: Callable[[Sequence[KeptImage], Callable[[Tensor], Tensor]], Any] | None = None,
    ) -> None:
        """Load.

        Args:
            language: load the language model too; without it this is a `Prompter`.
            part: the language side, see `part_of`.
            output: what takes the place of the vision tower's output, for models that need more than the features.
        """
        assert positions in (None, "grid"), "answer_corpus refuses the others"
        self.tokenizer = load_tokenizer(checkpoint)
        self.image_token_id = checkpoint.config.image_token_id
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        if token != PLACEHOLDER:
            raise UserError(
                f"--model {checkpoint.name}: token {self.image_token_id}, its config's image token, is {token!r} in "
                f"its tokenizer, expected {PLACEHOLDER!r}; config and tokenizer do not belong together"
            )
        self._poser = Poser(checkpoint, self.tokenizer, self.render, video=VIDEO)
        self.context = context_length(checkpoint.config)
        levels = getattr(checkpoint.config.vision_config, "deepstack_visual_indexes", ())
        self.width = checkpoint.config.get_text_config().hidden_size * (1 + len(levels))
        self._device, self._dtype = device, dtype
        self._output = output or _pooled
        self.model = load_part(part, checkpoint, device, dtype) if language else None
        if language:
            self.shares_beginnings, self.takes_padding = shares_beginnings(self.model), takes_padding(self.model)

    def render(self, prompt: Posed) -> str:
        """The text of a prompt, with one image placeholder."""
        return render_prompt(self.tokenizer, prompt, placeholder=PLACEHOLDER, default_template=TEMPLATE, inline=INLINE)

    def messages(self, prompt: Posed) -> list[dict[str, Any]]:
        """See `Prompter`."""
        return chat_messages(prompt, placeholder=PLACEHOLDER, inline=INLINE)

    def token_ids(self, prompt: Posed, image: KeptImage) -> list[int]:
        """Token ids of the prompt, with K image tokens in the place of the image."""
        ids = self._poser.ids(prompt)
        place = ids.index(self.image_token_id)
        return ids[:place] + [self.image_token_id] * len(image.indices_K) + ids[place + 1 :]

    def image_embeds(self, image: KeptImage) -> dict[str, Tensor]:
        """See `Prompter`: the kept features, and where on which grid they lie.

        Deepstack rows stand beside the features of their token, level after level. `kept_hw` (K, 2) holds row and
        column of every kept token, `true_hw` (2,) the rows and columns of the whole image.
        """
        levels = [image.extras_KO[f"deepstack.{level}"] for level in range(len(image.extras_KO))]
        rows = torch.cat([image.features_KO, *levels], dim=1).to(self._device, self._dtype)
        grid = image.selection.grid
        row_K, col_K = image.indices_K // grid["cols"], image.indices_K % grid["cols"]
        return {
            "image_embeds": rows,
            "kept_hw": torch.stack([row_K, col_K], dim=1),
            "true_hw": torch.tensor([grid["rows"], grid["cols"]]),
        }

    def image_inputs(self, images: Sequence[KeptImage], input_ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
        """Arguments with the kept features and, for every token, its text position, time, row and column."""
        positions_4BT = torch.zeros(4, *input_ids_BT.shape, dtype=torch.int64, device=input_ids_BT.device)
        for number, image in enumerate(images):
            real_T = mask_BT[number].bool()
            grid = image.selection.grid
            row_K, col_K = image.indices_K // grid["cols"], image.indices_K % grid["cols"]
            places_3K = torch.stack([torch.zeros_like(row_K), row_K, col_K]).to(input_ids_BT.device)
            is_image_T = input_ids_BT[number, real_T] == self.image_token_id
            span = max(grid["rows"], grid["cols"])
            positions_4BT[0, number, real_T] = torch.arange(int(real_T.sum()), device=input_ids_BT.device)
            positions_4BT[1:, number, real_T] = around_image(is_image_T, places_3K, span)
        to_model = partial(torch.Tensor.to, device=self._device, dtype=self._dtype)
        return {"mm_encoder_outputs": {"image": self._output(images, to_model)}, "position_ids": positions_4BT}


def _pooled(images: Sequence[KeptImage], to_model: Callable[[Tensor], Tensor]) -> Any:
    return BaseModelOutputWithPooling(pooler_output=[to_model(image.features_KO) for image in images])  # type: ignore[arg-type]
