"""What only a GPU can show. On the CPU `tests/families/test_waits.py` and `tests/zoo_ops/test_launches.py` count it."""

import io
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from benchmarks.synthetic import textured
from pipeline.budget import Budget
from pipeline.families.checkpoint import open_checkpoint
from pipeline.prune.encode import EncodeSettings, EncodeShards
from pipeline.prune.read import decode_samples
from pipeline.prune.rows import EncodedRow, rows_among
from pipeline.prune.select import SelectSettings
from schemas.columns import table_of
from schemas.samples import IndexRow
from tests.prune.made import file_sample
from zoo_ops import Findings, rank_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA"),
]
IMAGES = 64


@pytest.fixture(scope="module")
def shard(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """A decoded shard of made photographs."""
    folder: Path = tmp_path_factory.mktemp("images")
    rows = []
    for number in range(IMAGES):
        stream = io.BytesIO()
        Image.fromarray(textured(0, number)).save(stream, "PNG")
        rows.append(file_sample(number, folder / f"{number}.png", stream.getvalue()))
    return decode_samples(table_of(IndexRow, rows), tiny_llava)


def stage_on(device: str, model: str, batch_size: int) -> EncodeShards:
    select = SelectSettings(Budget("count", 64))
    stage = EncodeShards(EncodeSettings(model, "float32", batch_size, "model", select, device=device))
    assert stage.refused is None
    return stage


@pytest.mark.parametrize("batch_size", [4, 16])
def test_a_batch_waits_three_times_at_most(tiny_llava, shard, batch_size):
    stage = stage_on("cuda", tiny_llava, batch_size)
    stage.encode_shard(shard, batch_size)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            stage.encode_shard(shard, batch_size)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    synchronising = [one for one in said if "synchroniz" in str(one.message)]
    # One more wait is that for the results, of which the debug mode does not speak.
    assert len(synchronising) <= 2 * IMAGES // batch_size, {str(one.message) for one in synchronising}


def test_kept_sets_are_those_of_the_cpu(tiny_llava, shard):
    kept = []
    for device in ("cuda", "cpu"):
        rows = rows_among(EncodedRow, stage_on(device, tiny_llava, 16).encode_shard(shard, 16))
        kept.append([set(row.selection.ranking) for row in rows])
    assert sum(one == other for one, other in zip(*kept, strict=True)) >= 0.99 * IMAGES


def test_pixels_lie_where_the_device_reads_them_and_have_the_processors_bits(tiny_llava, shard):
    checkpoint, family = open_checkpoint(tiny_llava)
    on_gpu, on_cpu = (family.encoder(checkpoint, torch.device(name), torch.float32) for name in ("cuda", "cpu"))
    pixels = [np.asarray(textured(1, 0)).transpose(2, 0, 1)]
    packed = on_gpu.pack(pixels, [(128, 128)])
    assert packed.pixels.is_pinned()
    assert torch.equal(on_gpu._packer.inputs(packed).cpu(), on_cpu._packer.inputs(on_cpu.pack(pixels, [(128, 128)])))


@pytest.mark.parametrize("selector", ["zoo", "divprune", "zoo_centered", "coverage"])
def test_rankings_have_the_same_bits_in_any_batch_and_wait_for_nothing(selector):
    torch.manual_seed(0)
    features = [torch.randn(size, 256, device="cuda") for size in (576, 63, 576, 300)]
    scores = torch.rand(4, 576, device="cuda")
    rank_tokens(features, scores, max_tokens=63, selector=selector)
    torch.cuda.set_sync_debug_mode("error")
    try:
        together = rank_tokens(features, scores, max_tokens=63, selector=selector, findings=Findings())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for image, rows in enumerate(features):
        alone = rank_tokens([rows], scores[image : image + 1, : len(rows)], max_tokens=63, selector=selector)
        assert torch.equal(alone.indices_BK[0], together.indices_BK[image])
        assert torch.equal(alone.gains_BK[0], together.gains_BK[image])


def test_ties_go_to_the_smaller_index():
    features = torch.randn(32, device="cuda").expand(2, 700, 32)
    ranking = rank_tokens(features, torch.ones(2, 700, device="cuda"), max_tokens=700)
    assert ranking.indices_BK.tolist() == [list(range(700))] * 2
