"""What encoding and selecting a batch would wait for on a GPU, counted on a device that is the CPU."""

import json
from typing import Any

import pyarrow as pa
import pytest
import torch

from benchmarks.counted_device import Counted, counted_call
from pipeline.artifact.payload import unpack_features
from pipeline.budget import Budget
from pipeline.prune import encode
from pipeline.prune.encode import EncodeSettings, EncodeShards
from pipeline.prune.rows import (
    DECODED,
    DecodedRow,
    EncodedRow,
    ReadFacts,
    on_its_way,
    pixels_table,
    rows_among,
    same_in_each,
    stage_table,
)
from pipeline.prune.select import SelectSettings
from schemas.columns import table_of
from schemas.samples import IndexRow
from tests.families.models import TINY
from tests.prune.made import sample
from zoo_ops import greedy

MOST_WAITS = 3  # of a batch
CLOCKS = ["device", "encode_began", "encode_seconds", "score_seconds", "select_seconds"]


def shard_of(case, count: int) -> pa.Table:
    """A shard of so many of the case's images, which repeat."""
    numbers = [number % len(case.images) for number in range(count)]
    samples = [sample(n, n, f"{n}") for n in range(count)]
    rows = [
        DecodedRow(
            shard=0, source=row.source, image_id=row.image_id, reason=None, message=None,
            width=case.images[number].width, height=case.images[number].height,
        )
        for row, number in zip(samples, numbers, strict=True)
    ]  # fmt: skip
    return stage_table(
        DECODED,
        table_of(IndexRow, samples),
        table_of(DecodedRow, rows),
        pixels_table([case.pixels[number] for number in numbers]),
        same_in_each(ReadFacts(read_seconds=0.5, decode_seconds=1.5), count),
        on_its_way(count),
    )


def columns_that_differ(one: pa.Table, other: pa.Table) -> list[str]:
    return [name for name in one.column_names if not one[name].equals(other[name])]


def assert_same_but_clocks(
    stage: EncodeShards, on_cpu: EncodeShards, batch: pa.Table, size: int, given: pa.Table | None = None
) -> None:
    """Both stages give the same rows; else it is told where they begin to differ, and which differs from itself.

    A stage that gives other bits when it is asked again depends on something that it was not given.

    Args:
        given: what `stage` gave before, if it did.
    """
    runs = {"device": given or stage.encode_shard(batch, size), "CPU": on_cpu.encode_shard(batch, size)}
    if columns_that_differ(*runs.values()) == CLOCKS:
        return
    told = [f"device and CPU: {apart(*runs.values())}"]
    for name, one in (("device", stage), ("CPU", on_cpu)):
        told += [f"{name} and {name} again: {apart(runs[name], one.encode_shard(batch, size))}" for _ in range(2)]
    pytest.fail("\n".join(told))


def apart(one: pa.Table, other: pa.Table) -> str:
    """The columns that should not differ and do; of decisions and features, where they begin to and how far."""
    columns = [name for name in columns_that_differ(one, other) if name not in CLOCKS]
    told = [", ".join(columns) or "nothing differs"]
    for row, (left, right) in enumerate(zip(rows_among(EncodedRow, one), rows_among(EncodedRow, other), strict=True)):
        if left != right:
            told.append(f"image {row}: {', '.join(_differences(left, right))}")
    return "; ".join(told)


def _differences(left: EncodedRow, right: EncodedRow) -> list[str]:
    if left.selection is None or right.selection is None or left.features is None or right.features is None:
        return [f"{left.reason} and {right.reason}"]
    found = []
    for name in ("sensitivity", "ranking", "gain"):
        pairs = enumerate(zip(getattr(left.selection, name), getattr(right.selection, name), strict=True))
        other = [(place, *pair) for place, pair in pairs if pair[0] != pair[1]]
        if other:
            found.append(f"{len(other)} of {name}, first at {other[0][0]}: {other[0][1]!r} and {other[0][2]!r}")
    features, others = (unpack_features(one.features.features) for one in (left, right))
    for name, values in features.items():
        far = (values.double() - others[name].double()).abs()
        if far.any():
            found.append(f"{int(far.count_nonzero())} of {name}, the farthest by {float(far.max())!r}")
    return found or ["in what else is known of it"]


@pytest.fixture
def counted_stage(monkeypatch):
    """(case, batch size, selector) -> the stage on the counted device, the same on the CPU, and the counts."""
    counted = Counted()
    monkeypatch.setattr(greedy, "MIRROR_BLOCKS", 1)  # a GPU computes the products of an image in one block

    def make(case, batch_size: int, selector: str | None = None) -> tuple[EncodeShards, EncodeShards]:
        select = SelectSettings(
            Budget("ratio", 0.5),
            selector=selector or case.tiny.selector,
            # Its projector has no closed form, and the counted device no forward-mode derivatives.
            estimator="finite_difference" if case.tiny.family == "gemma3" else "closed_form",
            num_directions=3,
            centring=case.opened[1].centring,
        )
        settings = EncodeSettings(str(case.folder), "float32", batch_size, "model", select)
        stages = []
        for place in (device, torch.device("cpu")):
            monkeypatch.setattr(encode, "worker_device", lambda _, place=place: place)
            stages.append(EncodeShards(settings))
            assert stages[-1].refused is None
        # As on the device, in memory of their own: within the checkpoint's file they lie anywhere, and products may
        # round by that.
        for parameter in stages[1]._encoder._model.parameters():
            parameter.data = parameter.data.clone()
        return stages[0], stages[1]

    with counted.device() as device:
        yield make, counted


def counted_shard(stage: EncodeShards, batch: pa.Table, size: int, counted: Counted) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a stage that is warm, and what it did for them."""
    stage.encode_shard(batch, size)
    tables: list[pa.Table] = []
    found = counted_call(lambda: tables.append(stage.encode_shard(batch, size)), counted)
    return tables[0], found


@pytest.mark.parametrize("name", TINY)
def test_a_batch_waits_three_times_at_most_whatever_its_size(case, name, counted_stage):
    make, counted = counted_stage
    case = case(name)
    causes = []
    for size in (2, 5):
        stage, on_cpu = make(case, size)
        batch = shard_of(case, size)
        given, found = counted_shard(stage, batch, size, counted)
        assert found["waits"] <= MOST_WAITS, json.dumps(found["waits_by_cause"])
        assert found["downloads"] == 1
        causes.append(found["waits_by_cause"])
        assert_same_but_clocks(stage, on_cpu, batch, size, given)
    assert causes[0] == causes[1]


@pytest.mark.parametrize("selector", ["zoo_centered", "divprune", "coverage", "sensitivity", "cls_attention", "random"])
def test_no_selector_waits(case, selector, counted_stage):
    make, counted = counted_stage
    case = case("llava")
    stage, on_cpu = make(case, 4, selector)
    batch = shard_of(case, 8)
    given, found = counted_shard(stage, batch, 4, counted)
    assert found["waits"] <= 2 * MOST_WAITS, json.dumps(found["waits_by_cause"])
    assert_same_but_clocks(stage, on_cpu, batch, 4, given)


def test_a_difference_is_told_with_its_place_and_its_stage(case, counted_stage):
    """What this file compares must say enough to be understood where it fails once and never again."""
    make, _ = counted_stage
    case = case("llava")
    stage, on_cpu = make(case, 4)
    own, calls = stage._encoder.encode, []

    def drift(packed):
        images = own(packed)
        calls.append(1)
        images[2].projected_NO[:, 0] += 2.0 * len(calls)
        return images

    stage._encoder.encode = drift
    with pytest.raises(pytest.fail.Exception) as told:
        assert_same_but_clocks(stage, on_cpu, shard_of(case, 4), 4)
    both, *again = str(told.value).splitlines()
    assert both.startswith("device and CPU: selection, features; image 2: ")
    assert "of gain, first at " in both
    assert [line.partition(":")[0] for line in again] == ["device and device again"] * 2 + ["CPU and CPU again"] * 2
    assert "image 2: " in again[0]
    assert [line.partition(": ")[2] for line in again[2:]] == ["nothing differs"] * 2


def test_what_the_device_finds_is_told_with_the_results(case, counted_stage):
    """An image whose features are not finite fails alone, and nobody asks the device for it beforehand."""
    make, counted = counted_stage
    case = case("llava")
    stage, _ = make(case, 4)
    own = stage._encoder.encode

    def spoil(packed):
        images = own(packed)
        images[1].features_ND[0, 0] = torch.nan
        return images

    stage._encoder.encode = spoil
    given, found = counted_shard(stage, shard_of(case, 4), 4, counted)
    assert found["waits"] <= MOST_WAITS
    rows = rows_among(EncodedRow, given)
    assert [row.reason for row in rows] == [None, "non_finite_features", None, None]
    assert rows[0].selection is not None


def test_weights_beyond_float32_are_an_error_with_the_results(case, counted_stage):
    make, _ = counted_stage
    case = case("llava")
    stage, on_cpu = make(case, 4)
    for one in (stage, on_cpu):
        one._encoder.projector.linear_out.weight.detach().mul_(1e25)
        with pytest.raises(ValueError, match="the sensitivity of image 0 of the batch holds NaN or Inf"):
            one.encode_shard(shard_of(case, 4), 4)
