"""What LLaVA-NeXT and LLaVA-OneVision share: an overview and tiles that the model packs into one sequence.

How an image is packed is learnt from the model itself. Its own `pack_image_features` is given the tokens' numbers in
place of their features, and NaN as the newline; the result says which token lies where and where the newlines are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from pipeline.families import llava
from pipeline.families.base import Checkpoint, EncodedImage, Segment
from pipeline.families.class_attention import ClassAttention
from pipeline.families.loading import captured, load_part
from pipeline.families.processing import image_processor, normalised

# (model, one image's rows (tiles, n, width), its size (1, 2), newline (width,), whether a grid that is too large is
# resized as the model does) -> its packed sequence (N + S, width)
Pack = Callable[[Any, Tensor, Tensor, Tensor, bool], Tensor]


def num_tiles(processor: Any, width: int, height: int) -> int:
    """How many tiles the processor makes of an image of this size, the overview among them."""
    crop, size = processor.crop_size, processor.size
    side = (crop and crop.get("height")) or size.get("height") or size["shortest_edge"]
    down, across = select_best_resolution((height, width), processor.image_grid_pinpoints)
    return 1 + -(-down // side) * -(-across // side)


def refusal(config: Any) -> str | None:
    """Why this config can't be handled, None if it can: as of LLaVA, or a grid that lacks a patch."""
    if (reason := llava.refusal(config)) is not None:
        return reason
    if config.vision_config.model_type == "siglip_vision_model" and config.vision_feature_select_strategy == "default":
        return (
            "vision_feature_select_strategy is 'default', which leaves out the first patch of a SigLIP tower; the "
            "model itself can't lay the others out in a grid and asks for 'full'"
        )
    return None


@dataclass(frozen=True)
class Layout:
    """How the tokens of one image are packed into a sequence."""

    tokens_N: Tensor | None  # number of each visual token among the tiles' tokens; None: the model resized the grid
    structure: tuple[int, ...]
    segments: tuple[Segment, ...]
    grid: tuple[int, int, int]


class AnyresEncoder:
    """Runs the vision tower, the projector and the packing with newlines."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        part: type[Any],
        pack: Pack,
        kinds: Sequence[str],
        group_by_tile: bool,
    ) -> None:
        """Load the vision side.

        Args:
            part: the vision side, see `part_of`.
            pack: the model's packing.
            kinds: of image processors.
            group_by_tile: tokens are ranked within their tile.
        """
        self._processor = image_processor(checkpoint, kinds)
        self._model = load_part(part, checkpoint, device, dtype).model
        self._pack, self._group_by_tile = pack, group_by_tile
        self.projector = llava.spec_of(self._model.multi_modal_projector)
        self._attention = ClassAttention(self._model.vision_tower, checkpoint.config)
        vision = checkpoint.config.vision_config
        self._side = vision.image_size // vision.patch_size
        self._tile_size = vision.image_size
        self._pinpoints = checkpoint.config.image_grid_pinpoints

    @torch.inference_mode()
    def encode(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[EncodedImage]:
        """Encode all images in one pass of the tower over their tiles."""
        device = self._model.device
        tiles = torch.cat([normalised(self._processor, one) for one in pixels])
        sizes_B2 = torch.tensor(sizes, dtype=torch.int64, device=device)
        with captured(self._model.multi_modal_projector) as seen, self._attention.recorded() as attention:
            output = self._model.get_image_features(tiles.to(device, self._model.dtype), sizes_B2)
        counts = [len(one) for one in pixels]
        inputs = seen.input.split(counts)
        attentions = [None] * len(counts) if attention is None else attention.of_each(counts)
        packed = zip(inputs, output.pooler_output, sizes_B2.split(1), attentions, strict=True)
        return [self._image(*one) for one in packed]

    def _image(
        self, rows_TnD: Tensor, sequence_LO: Tensor, size_12: Tensor, attention: Callable[[], Tensor] | None
    ) -> EncodedImage:
        layout = self._layout(rows_TnD.shape[0], rows_TnD.shape[1], size_12)
        visual = torch.ones(len(sequence_LO), dtype=torch.bool, device=sequence_LO.device)
        visual[list(layout.structure)] = False

        def packed(values: Tensor) -> Tensor:
            """Rows (N, width) of what the tokens of all tiles have, as the sequence has them."""
            values_Tnd = values.reshape(*rows_TnD.shape[:2], -1)
            if layout.tokens_N is not None:
                return values_Tnd.flatten(0, 1)[layout.tokens_N.to(values.device)]
            # The model resized the projected grid; what goes along with it is resized alike.
            newline_d = values_Tnd.new_zeros(values_Tnd.shape[-1])
            return self._pack(self._model, values_Tnd, size_12, newline_d, True)[visual]

        def packed_attention() -> Tensor:
            assert attention is not None
            return packed(attention()).squeeze(1)

        image = EncodedImage(
            packed(rows_TnD),
            sequence_LO[visual],
            layout.segments,
            layout.grid,
            structure=layout.structure,
            class_attention=None if attention is None else packed_attention,
        )
        if not self._group_by_tile:
            return image
        return replace(image, groups_N=image.places()[:, 0].to(sequence_LO.device))

    def _layout(self, tiles: int, per_tile: int, size_12: Tensor) -> Layout:
        numbers = torch.arange(tiles * per_tile, dtype=torch.float64, device=size_12.device).view(tiles, per_tile, 1)
        newline = numbers.new_full((1,), torch.nan)
        packed_L = self._pack(self._model, numbers, size_12, newline, True).squeeze(1).cpu()
        structure = tuple(packed_L.isnan().nonzero().squeeze(1).tolist())
        rows, cols = len(structure), 0
        if rows:
            cols = (len(packed_L) - rows - per_tile) // rows
        overview = Segment(0, 0, self._side, self._side)
        tokens_N = packed_L[~packed_L.isnan()]
        if not rows * cols:  # unpadding left nothing of the tiles
            return Layout(tokens_N.long(), structure, (overview,), (self._side, self._side, 1))
        grid = (rows, cols, tiles)
        if len(packed_L) != len(self._pack(self._model, numbers, size_12, newline, False)):
            return Layout(None, structure, (overview, Segment(per_tile, 1, rows, cols)), grid)
        _, across = get_anyres_image_grid_shape(size_12[0], self._pinpoints, self._tile_size)
        tile, within = divmod(int(tokens_N[per_tile]) - per_tile, per_tile)
        tile_row, tile_col = divmod(tile, across)
        row, col = divmod(within, self._side)
        merged = Segment(
            per_tile,
            1,
            rows,
            cols,
            tile_rows=self._side,
            tile_cols=self._side,
            tiles_across=across,
            top=tile_row * self._side + row,
            left=tile_col * self._side + col,
        )
        return Layout(tokens_N.long(), structure, (overview, merged), grid)
