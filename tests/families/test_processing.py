"""Pixels cut in two halves have the bits of the model's own processor; absurd sizes are refused, not worked on."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from pipeline.families.base import UnusableImageError
from pipeline.families.processing import MAX_RESIZED_PIXELS, check_resized_size, normalised
from tests.families.models import MORE, TINY


@pytest.mark.parametrize("name", [*TINY, *MORE])
def test_prepared_pixels_give_the_processors_own_bits(case, name):
    case = case(name)
    processor = case.tiny.processor()
    for image, pixels in zip(case.images, case.pixels, strict=True):
        assert pixels.dtype == np.uint8
        expected = case.pixel_inputs(image)["pixel_values"]
        if name.startswith("qwen"):
            again = processor([pixels], do_resize=False, input_data_format="channels_first", return_tensors="pt")
            got = again["pixel_values"]
        elif name in ("idefics3", "smolvlm"):
            got = normalised(processor, pixels.reshape(-1, *pixels.shape[2:]))[: expected.shape[1]][None]
        else:
            got = normalised(processor, pixels)
            got = got if got.dim() == expected.dim() else got[None]
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (1, 1), (3, 500)])
def test_absurd_sizes_are_refused_or_bounded(case, name, size):
    checkpoint, family = case(name).opened
    preparer, image = family.preparer(checkpoint), Image.new("RGB", size, (90, 10, 200))
    if max(size) == 20000 and name.startswith("qwen"):
        with pytest.raises(UnusableImageError, match=f"{size[0]} x {size[1]}"):
            preparer.prepare(image)
    else:
        assert preparer.prepare(image).size <= 3 * MAX_RESIZED_PIXELS


@pytest.mark.parametrize("name", TINY)
def test_too_little_memory_is_not_blamed_on_the_image(case, name, monkeypatch):
    """It goes on to the read stage, which files it as `out_of_memory` for a redo to take up."""
    checkpoint, family = case(name).opened
    preparer = family.preparer(checkpoint)

    def run_out(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(preparer._processor), "resize", run_out)
    with pytest.raises(MemoryError):
        preparer.prepare(Image.new("RGB", (90, 30)))


def test_an_image_is_not_padded_to_a_square_at_any_price(case):
    checkpoint, family = case("llava-padded").opened
    preparer = family.preparer(checkpoint)
    assert preparer.prepare(Image.new("RGB", (3000, 1))).shape == (3, 28, 28)
    with pytest.raises(UnusableImageError, match=r"20000 x 1 would be padded to 400,000,000 pixels; at most"):
        preparer.prepare(Image.new("RGB", (20000, 1)))


def test_a_shortest_edge_is_not_brought_to_size_at_any_price():
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336})
    check_resized_size(processor, Image.new("RGB", (2000, 4)))
    with pytest.raises(UnusableImageError, match=r"20000 x 1 would be resized to 2,257,920,000 pixels; at most"):
        check_resized_size(processor, Image.new("RGB", (20000, 1)))


def test_a_tower_takes_what_unpadding_leaves_nothing_of(case):
    case = case("llava_next")
    checkpoint, family = case.opened
    thin = Image.new("RGB", (2000, 3), (90, 10, 200))
    (image,) = case.encoder.encode([family.preparer(checkpoint).prepare(thin)], [(3, 2000)])
    assert len(image.projected_NO) == 16
    assert image.places()[-1].tolist() == [0, 3, 3]
