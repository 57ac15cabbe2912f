"""InternVL 2.5 and 3 in Transformers' form: tiles and a thumbnail, LayerNorm-Linear-GELU-Linear projector."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.internvl.modeling_internvl import (
    InternVLForConditionalGeneration,
    InternVLMultiModalProjector,
)

from pipeline.families.answering import PackedAnswerer
from pipeline.families.base import Checkpoint, EncodedImage, Family, Packed, Segment
from pipeline.families.loading import captured, load_part, part_of, projector_form
from pipeline.families.processing import TilePacker, UintPreparer, image_processor
from zoo_ops import NormSpec, ProjectorSpec

PROCESSORS = ("GotOcr2ImageProcessor",)
PLACEHOLDER = "<IMG_CONTEXT>"


def _spec_of(projector: Any) -> ProjectorSpec:
    norm = NormSpec.of(projector.layer_norm)
    return ProjectorSpec(projector.linear_1, projector.act, projector.linear_2, norm)


def _num_tiles(processor: Any, width: int, height: int) -> int:
    tiles: int = processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
    return tiles


class InternVLEncoder:
    """Runs the vision tower, the pixel shuffle and the projector."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._processor = image_processor(checkpoint, PROCESSORS)
        self._packer = TilePacker(self._processor, device, dtype)
        self._model = load_part(
            part_of(InternVLForConditionalGeneration, "model.language_model", "lm_head"), checkpoint, device, dtype
        ).model
        self.projector = _spec_of(self._model.multi_modal_projector)

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """See `Encoder`."""
        return self._packer.pack(pixels, sizes)

    @torch.inference_mode()
    def encode(self, packed: Packed) -> list[EncodedImage]:
        """Encode all images in one pass of the tower over their tiles. Tokens are ranked within their tile."""
        with captured(self._model.multi_modal_projector) as seen:
            self._model.get_image_features(self._packer.inputs(packed))
        counts = [shape[0] for shape in packed.shapes]
        parts = zip(seen.input.split(counts), seen.output.split(counts), packed.sizes, strict=True)
        return [self._image(features, projected, size) for features, projected, size in parts]

    def _image(self, features_TnD: torch.Tensor, projected_TnO: torch.Tensor, size: tuple[int, int]) -> EncodedImage:
        tiles, per_tile = features_TnD.shape[:2]
        side = int(per_tile**0.5)
        across, down = self._canvas(size) if tiles > 1 else (1, 1)
        assert tiles == across * down + (tiles > 1), "the tiles of the canvas, and a thumbnail when there are several"
        segments = [
            Segment(tile * per_tile, tile, side, side, row=tile // across * side, col=tile % across * side)
            for tile in range(across * down)
        ]
        if tiles > 1:
            segments.append(Segment((tiles - 1) * per_tile, tiles - 1, side, side))
        return EncodedImage(
            features_TnD.flatten(0, 1),
            projected_TnO.flatten(0, 1),
            segments,
            (down * side, across * side, tiles),
            groups_N=torch.arange(tiles).repeat_interleave(per_tile),
        )

    def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """How many tiles the processor lays side by side, and how many one below the other."""
        tile = self._processor.size
        return get_optimal_tiled_canvas(
            size, (tile["height"], tile["width"]), self._processor.min_patches, self._processor.max_patches
        )


FAMILY = Family(
    name="internvl",
    preparer=partial(UintPreparer, kinds=PROCESSORS, an_entry_each=False, num_tiles=_num_tiles, crop_to_patches=True),
    encoder=InternVLEncoder,
    answerer=partial(
        PackedAnswerer,
        part=part_of(InternVLForConditionalGeneration, "model.vision_tower", "model.multi_modal_projector"),
        placeholder=PLACEHOLDER,
        default_template=f"<|im_start|>user\n{PLACEHOLDER}\n{{prompt}}<|im_end|>\n<|im_start|>assistant\n",
        expand=lambda text: text.replace(PLACEHOLDER, f"<img>{PLACEHOLDER}</img>"),
        as_list=False,
        video="<video>",
    ),
    projector=lambda config: _spec_of(projector_form(InternVLMultiModalProjector, config)),
    projector_weights=r"(^|\.)multi_modal_projector\.",
)
