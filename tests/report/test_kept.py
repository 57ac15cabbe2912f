"""Where tokens are kept and how scores are distributed: counted by hand, and by SQL on the bundled corpus."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.families.base import Segment
from pipeline.report.kept import kept_tokens
from pipeline.report.query import connect
from pipeline.report.rasters import Part, centres_of, rasters_of, seen_part

GRID = {"rows": 2, "cols": 2, "tiles": 1}


def segment(**fields: int) -> dict[str, int]:
    return {name: fields.get(name, 0) for name in Segment.__dataclass_fields__}


def test_the_small_artifact_as_counted_by_hand(small_pruned, tmp_path):
    """Two by two tokens, of which each image keeps the last (first pick) and the second."""
    kept = kept_tokens(connect(small_pruned(tmp_path / "out", value=1.0)), [("2", 2.0), ("1", 1.0)], 0)
    assert (kept.overview.images, kept.overview.tokens, kept.overview.kept) == (6, 24, 12)
    assert kept.grid == (2, 2)
    assert [(one.name, one.rate_RC.tolist()) for one in kept.levels] == [
        ("2", [[0, 1], [0, 1]]),
        ("1", [[0, 0], [0, 1]]),
    ]
    assert kept.main == "1"
    assert (kept.sensitivity.median_all, kept.sensitivity.median_picked) == (1.5, 3.0)
    assert kept.sensitivity.all_tokens.sum() == pytest.approx(1)
    assert kept.gains.picks == [1, 2]
    assert kept.gains.quantiles_PQ.tolist() == [[0.5] * 5, [0.25] * 5]


def test_the_map_agrees_with_sql(pruned_64):
    db = connect(pruned_64)
    kept = kept_tokens(db, [("32", 32.0)], 0)
    rows = db.sql(
        "select row, col, avg((pick < 32)::int::double) from (select row, col, coalesce(pick, 999) as pick from tokens)"
        " group by all order by all"
    ).fetchall()
    level = next(one for one in kept.levels if one.name == "32")
    assert level.rate_RC.flatten().tolist() == pytest.approx([rate for _, _, rate in rows])
    assert level.rate_RC.mean() == pytest.approx(32 / 256)
    assert (level.centre + 3 * level.border) / 4 == pytest.approx(32 / 256)
    assert kept.sampled == kept.overview.images == 307


def test_a_sample_is_told(pruned_64, monkeypatch):
    monkeypatch.setattr("pipeline.report.kept.MAX_IMAGES", 20)
    one, two, again = (kept_tokens(connect(pruned_64), [], seed) for seed in (1, 2, 1))
    assert one.sampled == 20
    assert one.levels[0].rate_RC.tolist() == again.levels[0].rate_RC.tolist() != two.levels[0].rate_RC.tolist()


def test_tiles_lie_in_the_grid_and_an_overview_over_all_of_it():
    """As InternVL and Idefics have it: tiles first, the overview last."""
    tiles = [segment(first=4 * n, tile=n, rows=2, cols=2, col=2 * n) for n in range(2)]
    rasters = rasters_of([*tiles, segment(first=8, tile=2, rows=2, cols=2)], {"rows": 2, "cols": 4, "tiles": 3})
    assert [one.is_overview for one in rasters] == [False, False, True]
    assert [(one.x, one.width) for one in rasters] == [(0, 0.25), (0.5, 0.25), (0, 0.5)]
    assert centres_of(rasters)[[0, 3, 4, 8]].tolist() == [[0.125, 0.25], [0.375, 0.75], [0.625, 0.25], [0.25, 0.25]]


def test_an_overview_before_the_merged_tiles_of_anyres():
    segments = [segment(rows=2, cols=2), segment(first=4, tile=1, rows=3, cols=5, tile_rows=2, tile_cols=2)]
    rasters = rasters_of(segments, {"rows": 3, "cols": 5, "tiles": 5})
    assert [(one.is_overview, one.width, one.height) for one in rasters] == [(True, 0.5, 0.5), (False, 0.2, 1 / 3)]
    assert len(centres_of(rasters)) == 4 + 15


def test_a_raster_that_lacks_its_first_token():
    """SigLIP under LLaVA's default selection."""
    segments = [segment(rows=1, cols=2, col=1), segment(first=2, rows=2, cols=3, row=1)]
    centres = centres_of(rasters_of(segments, {"rows": 3, "cols": 3, "tiles": 1}))
    assert len(centres) == 8
    assert centres[0].tolist() == pytest.approx([0.5, 1 / 6])
    assert centres[2].tolist() == pytest.approx([1 / 6, 0.5])


SETTINGS = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 32}}


@pytest.mark.parametrize(
    ("changes", "size", "seen"),
    [
        ({"crop_size": {"height": 32, "width": 32}}, (64, 32), Part(0.25, 0.0, 0.5, 1.0)),
        ({"crop_size": {"height": 32, "width": 32}}, (40, 80), Part(0.0, 0.25, 1.0, 0.5)),
        ({"crop_size": {"height": 16, "width": 16}, "do_center_crop": True}, (50, 50), Part(0.25, 0.25, 0.5, 0.5)),
        ({"crop_size": {"height": 32, "width": 32}, "do_center_crop": False}, (64, 32), Part(0, 0, 1, 1)),
        ({"size": {"height": 32, "width": 32}, "crop_size": 32}, (64, 32), Part(0, 0, 1, 1)),
        ({"image_processor_type": "SiglipImageProcessor"}, (64, 32), Part(0, 0, 1, 1)),
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True}, (64, 32), Part(0.0, -0.5, 1.0, 2.0)),
    ],
)
def test_what_the_model_sees_of_a_picture(tmp_path, changes, size, seen):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS | changes))
    part = seen_part("llava", str(tmp_path))(*size)
    assert (part.x, part.y, part.width, part.height) == pytest.approx((seen.x, seen.y, seen.width, seen.height))


def test_the_crop_is_the_one_that_the_processor_makes(tmp_path):
    """A picture whose red and green say where a pixel was: its prepared corners are those of the part that is seen."""
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    processor.save_pretrained(tmp_path)
    width, height = 240, 120
    red, green = np.meshgrid(np.linspace(0, 240, width), np.linspace(0, 240, height))
    picture = Image.fromarray(np.stack([red, green, red * 0], axis=2).astype(np.uint8))
    pixels = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    part = seen_part("llava", str(tmp_path))(width, height)
    assert pixels[0, 24, 0] / 240 == pytest.approx(part.x, abs=0.02)
    assert pixels[0, 24, -1] / 240 == pytest.approx(part.x + part.width, abs=0.02)
    assert pixels[1, 0, 24] / 240 == pytest.approx(part.y, abs=0.02)


def test_without_the_processor_it_is_not_known(tmp_path):
    assert seen_part("llava", str(tmp_path)) is None
    assert seen_part("llava", None) is None
    assert seen_part("qwen2_vl", None)(3, 5) == Part(0, 0, 1, 1)
    (tmp_path / "processor_config.json").write_text("{")
    assert seen_part("llava", str(tmp_path)) is None


def test_the_bundled_model_sees_whole_pictures(tiny_llava):
    assert seen_part("llava", tiny_llava)(64, 32) == Part(0, 0, 1, 1)
