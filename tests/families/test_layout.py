"""Where every token lies: order of the sequence, tile, row and column, in Python and in SQL; groups and budgets."""

from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline.families.loading import captured
from schemas.tables import SELECTIONS
from schemas.views import tokens_view
from tests.families.models import TINY

TILED = ("llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm")


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_features_and_projected_rows_are_of_the_same_tokens_in_the_stock_order(case, name):
    case = case(name)
    for number, image in enumerate(case.encoded):
        stock = torch.cat(list(case.stock_features(number).pooler_output))
        visual = torch.ones(len(stock), dtype=torch.bool)
        visual[list(image.structure)] = False
        assert torch.allclose(image.projected_NO, stock[visual], rtol=1e-5, atol=1e-5)
        if image.structure:
            assert (stock[~visual] == case.stock.model.image_newline).all()
        if not _resized(image):
            assert torch.allclose(case.encoder.projector(image.features_ND), image.projected_NO, rtol=1e-5, atol=1e-5)


def _resized(image: Any) -> bool:
    return len(image.segments) == 2 and image.segments[1].tile_rows == 0 and bool(image.structure)


@pytest.mark.parametrize("name", TINY)
def test_places_cover_the_grid_once(case, name):
    for image in case(name).encoded:
        places = [tuple(place) for place in image.places().tolist()]
        assert len(set(places)) == len(places)
        rows, cols, tiles = image.grid
        overview = {None} if tiles == 1 else {0} if image.structure else {tiles - 1}
        in_grid = [(row, col) for tile, row, col in places if tile not in overview]
        assert sorted(in_grid) == [(row, col) for row in range(rows) for col in range(cols)]


def test_a_first_patch_that_the_model_leaves_out_has_no_place(case):
    """LLaVA with a SigLIP tower and `default`: the first token is a patch there, and the model drops it."""
    case = case("llava-siglip-default")
    everything = [(row, col) for row in range(4) for col in range(4)]
    for number, image in enumerate(case.encoded):
        assert [tuple(place) for place in image.places()[:, 1:].tolist()] == everything[1:]
        tower = case.stock.model.vision_tower(**case.pixel_inputs(case.images[number]), output_hidden_states=True)
        assert torch.equal(image.features_ND, tower.hidden_states[-2][0, 1:])
    ranking = case.rows("uniform_grid")[0]["ranking"]
    assert sorted(ranking) == list(range(15))


def test_next_tokens_are_those_of_their_tiles(case):
    case = case("llava_next")
    side, size = 4, 28
    for number, image in enumerate(case.encoded):
        width, height = case.images[number].size
        with captured(case.stock.model.multi_modal_projector) as seen, torch.no_grad():
            case.stock.model.get_image_features(**case.pixel_inputs(case.images[number]))
        canvas = max(
            case.stock.config.image_grid_pinpoints,
            key=lambda pin: (_effective(pin, height, width), -pin[0] * pin[1]),
        )
        down, across = canvas[0] // size * side, canvas[1] // size * side
        scale = min(down / height, across / width)
        top = (down - int(round(height * scale, 7))) // 2 if width / height > across / down else 0
        left = (across - int(round(width * scale, 7))) // 2 if width / height <= across / down else 0
        for token, row_O in enumerate(image.projected_NO):
            tile, row, col = image.places()[token].tolist()
            if tile:
                row, col = row + top, col + left
                assert tile == 1 + row // side * (across // side) + col // side
            expected = seen.output[tile, row % side * side + col % side]
            assert torch.allclose(row_O, expected, rtol=1e-5, atol=1e-5)


def _effective(pin: list[int], height: int, width: int) -> int:
    """Pixels of the image that a canvas shows."""
    scale = min(pin[1] / width, pin[0] / height)
    return min(int(width * scale) * int(height * scale), width * height)


@pytest.mark.parametrize("name", [*TINY, "llava-siglip-default"])
def test_the_tokens_view_tells_the_same_places(case, name):
    case = case(name)
    rows = [{**dict.fromkeys(SELECTIONS.names), **row} for row in case.rows()]
    images = pa.Table.from_pylist(rows, SELECTIONS)
    db = duckdb.connect()
    db.register("images", images)
    db.execute(tokens_view())
    for number, image in enumerate(case.encoded):
        told = db.sql(
            f"select tile, row, col, sensitivity, pick from tokens where image_id = '{number:064x}' order by token"
        ).fetchall()
        assert [row[:3] for row in told] == [tuple(place) for place in image.places().tolist()]
        assert all((row[3] is None) == case.tiny.linear for row in told)
        ranking = rows[number]["ranking"]
        assert [ranking[row[4]] for row in told] == list(range(len(told)))
        positions = [tuple(place.values()) for place in rows[number]["position"]]
        assert positions == [tuple(place) for place in image.places()[ranking].tolist()]


@pytest.mark.parametrize("name", ["llava_next", "internvl", "idefics3"])
def test_every_prefix_takes_as_many_tokens_of_each_tile(case, name):
    case = case(name)
    for image, row in zip(case.encoded, case.rows(), strict=True):
        tile_of = image.places()[row["ranking"], 0].tolist()
        sizes = Counter(tile_of)
        for k in range(1, min(sizes.values()) * len(sizes) + 1):
            taken = Counter(tile_of[:k])
            assert all(taken[tile] in (k // len(sizes), k // len(sizes) + 1) for tile in sizes)


@pytest.mark.parametrize("name", TINY)
def test_what_positions_need_is_stored(case, name):
    case = case(name)
    for number, (image, row) in enumerate(zip(case.encoded, case.rows(), strict=True)):
        inputs = case.pixel_inputs(case.images[number])
        if "image_grid_thw" in inputs:
            assert list(row["image_grid_thw"]) == inputs["image_grid_thw"][0].tolist()
        else:
            assert row["image_grid_thw"] is None
        assert row["num_structure"] == len(row["structure"]) == len(image.structure)
        assert row["num_tokens"] == len(image.projected_NO)
    has_newlines = name in ("llava_next", "llava_onevision")
    assert any(row["num_structure"] for row in case.rows()) == has_newlines


def test_a_large_onevision_grid_is_resized_and_a_small_one_is_not(case):
    case = case("llava_onevision")
    assert {_resized(image) for image in case.encoded} == {True, False}
    for image in case.encoded:
        assert len(image.features_ND) == len(image.projected_NO)
        assert _finite(image.features_ND)


def _finite(rows: Tensor) -> bool:
    return bool(torch.isfinite(rows).all())
