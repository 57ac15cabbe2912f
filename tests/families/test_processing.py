"""Pixels cut in two halves have the bits of the model's own processor; absurd sizes are refused, not worked on."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from pipeline.families.base import UnusableImageError
from pipeline.families.processing import MAX_RESIZED_PIXELS, NormalisingTable, check_resized_size
from tests.families.models import MORE, TINY


@pytest.mark.parametrize("name", [*TINY, *MORE])
def test_prepared_pixels_give_the_processors_own_bits(case, name):
    case = case(name)
    for image, pixels in zip(case.images, case.pixels, strict=True):
        assert pixels.dtype == np.uint8
        expected = case.pixel_inputs(image)["pixel_values"]
        packed = case.encoder.pack([pixels], [(image.height, image.width)])
        got = case.encoder._inputs(packed) if name.startswith("qwen") else case.encoder._packer.inputs(packed)
        assert packed.pixels.dtype == torch.uint8
        assert torch.equal(got, expected.reshape(got.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*TINY, *MORE])
def test_the_table_has_the_processors_bits_of_every_value_of_every_channel(case, name, dtype):
    """In the model's dtype, into which the processor's float32 is rounded; of the stock processor's own arithmetic."""
    processor = case(name).tiny.processor()
    table = NormalisingTable(processor, torch.device("cpu"), dtype)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, 0)
    expected = pixels
    if processor.do_rescale:
        expected = processor.rescale(expected, processor.rescale_factor)
    if processor.do_normalize:
        expected = processor.normalize(expected, processor.image_mean, processor.image_std)
    got = table(torch.from_numpy(pixels), 0)
    assert torch.equal(got, torch.from_numpy(np.ascontiguousarray(expected, dtype=np.float32)).to(dtype))


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
    (image,) = case.encoder.encode(case.encoder.pack([family.preparer(checkpoint).prepare(thin)], [(3, 2000)]))
    assert len(image.projected_NO) == 16
    assert image.places()[-1].tolist() == [0, 3, 3]
