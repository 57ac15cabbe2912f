"""What LLaVA-NeXT and LLaVA-OneVision share: an overview and tiles that the model packs into one sequence.

How an image is packed is learnt from the model itself. Its own `pack_image_features` is given the tokens' numbers in
place of their features, and NaN as the newline; the result says which token lies where and where the newlines are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from pipeline.families import llava
from pipeline.families.base import Checkpoint, EncodedImage, Packed, Segment
from pipeline.families.class_attention import ClassAttention
from pipeline.families.loading import captured, load_part
from pipeline.families.processing import TilePacker, image_processor
from zoo_ops import upload

LAYOUTS = 1024  # of images of different sizes that are remembered
# (model, rows of each image (tiles, n, width), their sizes (B, 2) on the host, newline (width,), whether a grid that is
# too large is resized as the model does) -> the packed sequence of each (N + S, width)
Pack = Callable[[Any, Sequence[Tensor], Tensor, Tensor, bool], Sequence[Tensor]]


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

    order_N: Tensor  # place of each visual token among the tiles' tokens; where the model resized, in the sequence
    resized: bool  # the model shrank the projected grid of the tiles
    structure: tuple[int, ...]
    segments: tuple[Segment, ...]
    grid: tuple[int, int, int]

    @cached_property
    def places(self) -> Tensor:
        """Tile, row and column of every visual token."""
        return torch.cat([segment.places() for segment in self.segments])


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
        self._packer = TilePacker(image_processor(checkpoint, kinds), device, dtype)
        self._model = load_part(part, checkpoint, device, dtype).model
        self._pack, self._group_by_tile = pack, group_by_tile
        self.projector = llava.spec_of(self._model.multi_modal_projector)
        self._attention = ClassAttention(self._model.vision_tower, checkpoint.config)
        vision = checkpoint.config.vision_config
        self._side = vision.image_size // vision.patch_size
        self._tile_size = vision.image_size
        self._pinpoints = checkpoint.config.image_grid_pinpoints
        self._layout = lru_cache(maxsize=LAYOUTS)(self._find_layout)

    def pack(self, pixels: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Packed:
        """See `Encoder`."""
        return self._packer.pack(pixels, sizes)

    @torch.inference_mode()
    def encode(self, packed: Packed) -> list[EncodedImage]:
        """Encode all images in one pass of the tower over their tiles."""
        # On the host: there the model reads the sizes, number by number.
        sizes_B2 = torch.tensor(packed.sizes, dtype=torch.int64)
        with captured(self._model.multi_modal_projector) as seen, self._attention.recorded() as attention:
            output = self._model.get_image_features(self._packer.inputs(packed), sizes_B2)
        counts = [shape[0] for shape in packed.shapes]
        per_tile, device = seen.input.shape[1], seen.input.device
        layouts = [self._layout(tiles, per_tile, size) for tiles, size in zip(counts, packed.sizes, strict=True)]
        orders = upload(torch.cat([layout.order_N for layout in layouts]), device)
        attentions = [None] * len(counts) if attention is None else attention.of_each(counts)
        parts = zip(
            layouts,
            orders.split([len(layout.order_N) for layout in layouts]),
            seen.input.split(counts),
            seen.output.split(counts),
            output.pooler_output,
            attentions,
            self._resized(seen.input.split(counts), sizes_B2, layouts),
            strict=True,
        )
        return [self._image(*part) for part in parts]

    def _resized(self, rows: Sequence[Tensor], sizes_B2: Tensor, layouts: Sequence[Layout]) -> list[Tensor | None]:
        """The features of the images whose projected grid the model resized, resized alike; None for the others."""
        some = [number for number, layout in enumerate(layouts) if layout.resized]
        features: list[Tensor | None] = [None] * len(layouts)
        if some:
            newline_D = rows[0].new_zeros(rows[0].shape[-1])
            packed = self._pack(self._model, [rows[number] for number in some], sizes_B2[some], newline_D, True)
            for number, sequence_LD in zip(some, packed, strict=True):
                features[number] = sequence_LD
        return features

    def _image(
        self,
        layout: Layout,
        order_N: Tensor,
        rows_TnD: Tensor,
        projected_TnO: Tensor,
        sequence_LO: Tensor,
        attention: Callable[[], Tensor] | None,
        resized_LD: Tensor | None,
    ) -> EncodedImage:
        def in_order(values_Tn: Tensor) -> Tensor:
            return values_Tn.flatten(0, 1)[order_N]

        def attention_in_order() -> Tensor:
            assert attention is not None
            assert not layout.resized, "towers with a class token are those of LLaVA-NeXT, which resizes nothing"
            return in_order(attention().unsqueeze(0))

        return EncodedImage(
            in_order(rows_TnD) if resized_LD is None else resized_LD[order_N],
            in_order(projected_TnO) if resized_LD is None else sequence_LO[order_N],
            layout.segments,
            layout.grid,
            groups_N=layout.places[:, 0] if self._group_by_tile else None,
            structure=layout.structure,
            class_attention=None if attention is None else attention_in_order,
        )

    def _find_layout(self, tiles: int, per_tile: int, size: tuple[int, int]) -> Layout:
        sizes_12 = torch.tensor([size], dtype=torch.int64)
        numbers = torch.arange(tiles * per_tile, dtype=torch.float64).view(tiles, per_tile, 1)
        newline = numbers.new_full((1,), torch.nan)
        packed_L = self._pack(self._model, [numbers], sizes_12, newline, True)[0].squeeze(1)
        structure = tuple(packed_L.isnan().nonzero().squeeze(1).tolist())
        rows, cols = len(structure), 0
        if rows:
            cols = (len(packed_L) - rows - per_tile) // rows
        overview = Segment(0, 0, self._side, self._side)
        tokens_N = packed_L[~packed_L.isnan()]
        if not rows * cols:  # unpadding left nothing of the tiles
            return Layout(tokens_N.long(), False, structure, (overview,), (self._side, self._side, 1))
        grid = (rows, cols, tiles)
        if len(packed_L) != len(self._pack(self._model, [numbers], sizes_12, newline, False)[0]):
            visual_N = (~packed_L.isnan()).nonzero().squeeze(1)
            return Layout(visual_N, True, structure, (overview, Segment(per_tile, 1, rows, cols)), grid)
        _, across = get_anyres_image_grid_shape(size, self._pinpoints, self._tile_size)
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
        return Layout(tokens_N.long(), False, structure, (overview, merged), grid)
