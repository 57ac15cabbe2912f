"""Rows of a Ray Dataset, and rows for `ray.data.llm`, whose tensors must come out as they went in."""

import numpy as np
import pytest
import ray
import torch

from pipeline.cluster.datasets import dataset_of
from pipeline.datasets import ray_dataset as module
from pipeline.datasets.ray_dataset import EngineSettings, engine_rows, ray_dataset, read_engine_rows, read_rows
from pipeline.datasets.source import open_source
from pipeline.errors import UserError
from pipeline.families.base import UnusablePromptError
from tests.datasets.conftest import features_of

COUNTS = (5, 0, 3)


class Inputs:
    """A family without a model: words are their lengths."""

    image_token_id, context = 7, 20

    def token_ids(self, prompt, image):
        if "0-2" in prompt:
            raise UnusablePromptError("no words for it")
        return [1, *[7] * (1 + len(image.indices_K)), *map(len, prompt.split())]

    def image_embeds(self, image):
        newline = torch.zeros(1, image.features_KO.shape[1], dtype=image.features_KO.dtype)
        return {"image_embeds": torch.cat([image.features_KO, newline]), "true_hw": torch.tensor([2, 2])}


@pytest.fixture
def inputs(monkeypatch):
    monkeypatch.setattr(module, "_engine_inputs", lambda model, dtype: Inputs())


def test_a_shard_is_rows_with_the_features_of_their_images(make):
    source = open_source(make(COUNTS, elsewhere=("2-1", 0)), tokens=2)
    (rows,) = read_rows(1, source)
    table = rows.table.to_pylist()
    assert [row["prompt_id"] for row in table] == ["2-0", "2-1", "2-2"]
    assert table[0] == table[0] | {
        "prompt": "what is 2-0 ?", "references": ["answer 2-0"], "type": "t", "shard": 2, "num_tokens": 4,
        "grid": {"rows": 2, "cols": 2, "tiles": 1}, "indices": [0, 3], "messages": None, "message": None,
    }  # fmt: skip
    assert [row["message"] for row in table] == [None, "its image has no selection in the pruned corpus", None]
    expected = [features_of(2, 0)[[1, 0]], np.zeros((0, 0)), features_of(2, 1)[[1, 0]]]
    for array, features in zip(rows.tensors["features"], expected, strict=True):
        assert array.dtype == np.float32
        assert np.array_equal(array, features)


def test_bfloat16_comes_as_float32(make):
    (rows,) = read_rows(0, open_source(make((2,), dtype="bfloat16")))
    assert [array.dtype for array in rows.tensors["features"]] == [np.float32] * 2


def test_rows_for_an_engine_have_one_image_token_and_the_rows_of_the_image(make, inputs):
    source = open_source(make((5,), elsewhere=("0-4", 0)), tokens=2)
    (rows,) = read_engine_rows(0, EngineSettings(source, "m", "float32", {"max_tokens": 3}))
    table = rows.table.to_pylist()
    assert [row["prompt_id"] for row in table] == [f"0-{n}" for n in range(5)]
    assert table[0]["tokenized_prompt"] == [1, 7, 4, 2, 3, 1]
    assert table[0]["sampling_params"] == {"max_tokens": 3}
    data = rows.objects["multimodal_data"]
    assert torch.equal(data[0]["image"]["image_embeds"][:2], features_of(0, 0)[[1, 0]])
    assert data[0]["image"]["true_hw"].tolist() == [2, 2]
    keys = [row["multimodal_uuids"] and row["multimodal_uuids"]["image"][0] for row in table]
    assert keys[0] == keys[1] != keys[3]
    assert keys[0].startswith(table[0]["image_id"])
    assert [row["__inference_error__"] for row in table] == [
        *("", "", "no words for it", ""), "its image has no selection in the pruned corpus",
    ]  # fmt: skip
    assert [one is None for one in data] == [False, False, True, False, True]


def test_prompts_about_one_image_follow_each_other(make, inputs, monkeypatch):
    source = open_source(make((5,)))
    read = type(source).read
    monkeypatch.setattr(type(source), "read", lambda self, place: read(self, place)[::2] + read(self, place)[1::2])
    (rows,) = read_engine_rows(0, EngineSettings(source, "m", "float32", {"max_tokens": 3}))
    assert rows.table["prompt_id"].to_pylist() == ["0-0", "0-1", "0-2", "0-3", "0-4"]


def test_a_prompt_that_is_too_long_has_its_reason(make, inputs, monkeypatch):
    monkeypatch.setattr(Inputs, "context", 8)
    (rows,) = read_engine_rows(0, EngineSettings(open_source(make((2,))), "m", "float32", {"max_tokens": 3}))
    told = "the prompt has 9 tokens with its image, the model takes 8 (max_position_embeddings); shorten it"
    assert [one[: len(told)] for one in rows.table["__inference_error__"].to_pylist()] == [told] * 2


def test_a_family_that_vllm_has_no_class_for_is_refused(make, tiny_llava, monkeypatch):
    monkeypatch.setattr(module, "SERVED", ("qwen3_vl",))
    with pytest.raises(UserError, match=r"family llava, which .* do not run \(they run qwen3_vl\); answer with"):
        engine_rows(make((1,)), model=tiny_llava)


def test_another_model_is_refused(make, tiny_llava):
    with pytest.raises(UserError, match="is not the model that pruned"):
        engine_rows(make((1,)), model=tiny_llava)


def test_ray_reads_every_shard_and_engine_rows_keep_their_tensors(make, ray_session):
    """In one process of Ray for both. Features have different lengths; objects in Arrow are moved once more."""
    address = make(COUNTS, elsewhere=("2-2", 0))
    ray.data.DataContext.get_current().enable_progress_bars = False
    found = {row["prompt_id"]: row for row in ray_dataset(address, num_cpus=2).iter_rows()}
    assert sorted(found) == ["0-0", "0-1", "0-2", "0-3", "0-4", "2-0", "2-1", "2-2"]
    for prompt_id, row in found.items():
        if prompt_id == "2-2":
            assert row["features"].shape == (0, 0)
            continue
        shard, number = map(int, prompt_id.split("-"))
        assert np.array_equal(row["features"], features_of(shard, number // 2)[[1, 2, 0]])
    settings = EngineSettings(open_source(address, dtype="bfloat16"), "m", "bfloat16", {"max_tokens": 3})
    rows = dataset_of(range(2), _read_with_fake_inputs, settings, num_cpus=2, concurrency=None)
    there = {row["prompt_id"]: row for row in rows.repartition(1).iter_rows()}
    for prompt_id in found:
        shard, number = map(int, prompt_id.split("-"))
        if prompt_id in ("0-2", "2-2"):
            assert there[prompt_id]["multimodal_data"] is None
            continue
        embeds = there[prompt_id]["multimodal_data"]["image"]["image_embeds"]
        assert embeds.dtype == torch.bfloat16
        assert torch.equal(embeds[:3], features_of(shard, number // 2)[[1, 2, 0]].bfloat16())


def _read_with_fake_inputs(place, settings):
    module._engine_inputs = lambda model, dtype: Inputs()
    return read_engine_rows(place, settings)
