"""Where in a picture its visual tokens lie: what the rows of an artifact say of their grid, as boxes.

Lengths are shares of what the model sees of the picture, from its upper left corner. What it sees is the whole picture,
but for processors that crop it or pad it, see `seen_part`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.storage.input_file import InputReadError, open_input
from pipeline.storage.paths import is_url

_PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # the former holds the latter where it has it
_CROPS = ("CLIP", "Llava")  # kinds of processors that crop where their settings say nothing of it
_CROPPING = "llava"  # the one family whose processor may show less, or more, than the whole picture


@dataclass(frozen=True, slots=True)
class Raster:
    """A run of consecutive tokens that lie row by row in cells of one size."""

    rows: int
    cols: int
    x: float  # of its left edge
    y: float
    width: float  # of a cell
    height: float
    is_overview: bool  # other tokens of the image show the same, in finer cells


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a picture in shares of its width and height; what is padded lies outside of 0 to 1."""

    x: float
    y: float
    width: float
    height: float


WHOLE = Part(0.0, 0.0, 1.0, 1.0)
SeenPart = Callable[[int, int], Part]  # (width, height of a picture) -> what the model sees of it


def rasters_of(segments: Sequence[Mapping[str, int]], grid: Mapping[str, int]) -> list[Raster]:
    """The rasters of an image's tokens, in the order of the tokens.

    A segment lies in the grid of the whole image, unless it is the overview, which has a grid of its own. There is an
    overview where two segments begin at (0, 0): it is the first, where the last one covers the whole grid, else the
    last.
    """
    beginning = [place for place, one in enumerate(segments) if one["row"] == 0 and one["col"] == 0]
    overview = None
    if len(beginning) > 1:
        last = segments[-1]
        covers = (last["rows"], last["cols"]) == (grid["rows"], grid["cols"])
        overview = beginning[0] if covers else len(segments) - 1
    rasters = []
    for place, one in enumerate(segments):
        is_overview = place == overview
        rows, cols = (one["rows"], one["cols"]) if is_overview else (grid["rows"], grid["cols"])
        rasters.append(
            Raster(
                rows=one["rows"],
                cols=one["cols"],
                x=one["col"] / cols,
                y=one["row"] / rows,
                width=1 / cols,
                height=1 / rows,
                is_overview=is_overview,
            )
        )
    return rasters


def centres_of(rasters: Sequence[Raster]) -> NDArray[np.float64]:
    """The centre (x, y) of each token (N, 2)."""
    centres = []
    for one in rasters:
        row, col = np.divmod(np.arange(one.rows * one.cols), one.cols)
        centres.append(np.stack([one.x + (col + 0.5) * one.width, one.y + (row + 0.5) * one.height], axis=1))
    return np.concatenate(centres)


def seen_part(family: str, model: str | None) -> SeenPart | None:
    """What a model sees of pictures, by the processor's settings beside its weights; None where these can't be read.

    Only LLaVA-1.5's processor crops or pads; the others' show the whole picture, however stretched.

    Args:
        family: of the model.
        model: where its files lie, as the job's record has it: a folder, an address, or a hub's id and commit.
    """
    if family != _CROPPING:
        return lambda _width, _height: WHOLE
    settings = _processor_settings(model) if model else None
    if settings is None:
        return None
    kind = str(settings.get("image_processor_type", settings.get("feature_extractor_type", "")))
    if settings.get("do_pad", False) and kind.startswith("LlavaImageProcessor"):
        return _padded
    if not settings.get("do_center_crop", kind.startswith(_CROPS)):
        return lambda _width, _height: WHOLE
    size, crop = settings.get("size"), settings.get("crop_size")
    short = size.get("shortest_edge") if isinstance(size, dict) else size
    crop = {"width": crop, "height": crop} if isinstance(crop, int) else crop
    if not isinstance(short, int) or not isinstance(crop, dict):
        return lambda _width, _height: WHOLE  # it is resized to the size of the crop
    return lambda width, height: _cropped(width, height, short, crop["width"], crop["height"])


def _cropped(width: int, height: int, short: int, crop_width: int, crop_height: int) -> Part:
    """The centre of a picture whose shorter side is made `short` long before it is cropped."""
    scale = short / min(width, height)
    across, down = crop_width / (width * scale), crop_height / (height * scale)
    return Part((1 - across) / 2, (1 - down) / 2, across, down)


def _padded(width: int, height: int) -> Part:
    """A square around the picture."""
    side = max(width, height)
    across, down = side / width, side / height
    return Part((1 - across) / 2, (1 - down) / 2, across, down)


def _processor_settings(model: str) -> dict[str, Any] | None:
    for name in _PROCESSORS:
        location = _file_of(model, name)
        if location is None:
            continue
        try:
            with open_input(location) as stream:
                found = json.loads(stream.read())
        except (InputReadError, ValueError):
            continue
        found = found.get("image_processor", found) if isinstance(found, dict) else None
        if isinstance(found, dict) and found.keys() & {"size", "do_resize"}:
            return found
    return None


def _file_of(model: str, name: str) -> str | None:
    """Where a file of a model lies; of one of the hub only what is on this machine: a report asks no network."""
    if os.path.isabs(model) or is_url(model):
        return f"{model.rstrip('/')}/{name}"
    from huggingface_hub import try_to_load_from_cache  # here: only models of the hub need it

    repository, _, revision = model.partition("@")
    found = try_to_load_from_cache(repository, name, revision=revision or None)
    return found if isinstance(found, str) else None
