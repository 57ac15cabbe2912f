"""The model actor: each image gets its own decision, whatever lies beside it in the batch."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from pipeline.artifact.payload import unpack_features
from pipeline.budget import Budget
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.outcomes import Status, ended_shard
from pipeline.families.base import EncodedImage, Packed, Segment
from pipeline.prune import encode
from pipeline.prune.encode import EncodeSettings, EncodeShards
from pipeline.prune.rows import (
    DECODED,
    ENCODED,
    DecodedRow,
    EncodedRow,
    EncodeFacts,
    ReadFacts,
    facts_among,
    on_its_way,
    pixels_table,
    rows_among,
    same_in_each,
    stage_table,
)
from pipeline.prune.select import SelectSettings
from schemas.columns import table_of
from schemas.samples import IndexRow
from tests.prune.made import sample
from zoo_ops import as_projector_spec

PROJECTOR = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 5)).requires_grad_(False)
NAN, LOUD = 255, 254  # first byte of an image that the model spoils


class MadeEncoder:
    """As many tokens as an image has columns; their features depend on its bytes alone."""

    projector = as_projector_spec(PROJECTOR)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def pack(self, pixels: list[np.ndarray], sizes: list[tuple[int, int]]) -> Packed:
        assert [image.shape[:2] for image in pixels] == list(sizes)
        columns = torch.from_numpy(np.concatenate(pixels, axis=1))
        return Packed(columns, [image.shape for image in pixels], list(sizes))

    def encode(self, packed: Packed) -> list[EncodedImage]:
        self.batches.append(len(packed.shapes))
        return [self._encoded(one.numpy()) for one in packed.pixels.split([width for _, width in packed.sizes], 1)]

    def _encoded(self, image: np.ndarray) -> EncodedImage:
        features = torch.randn(image.shape[1], 6, generator=torch.Generator().manual_seed(int(image.sum())))
        if image.flat[0] == NAN:
            features[-1, -1] = torch.nan
        projected = PROJECTOR(features) * (1e6 if image.flat[0] == LOUD else 1)
        columns = image.shape[1]
        return EncodedImage(
            features,
            projected,
            [Segment(0, 0, 1, columns)],
            (1, columns, 1),
            structure=(1,),
            image_grid_thw=(1, 2, columns),
            extras_NO={"deepstack.0": projected + 1},
        )


def picture(number: int, columns: int) -> np.ndarray:
    return np.full((2, columns, 3), number, np.uint8)


def decoded_table(pixels: list[np.ndarray | None]) -> pa.Table:
    """A shard as the encode stage gets it: a sample without pixels repeats an image, or failed if it is the first."""
    samples = [sample(n, None if image is None else n, f"{n}") for n, image in enumerate(pixels)]
    rows = [
        DecodedRow(
            shard=0, source=row.source, image_id=row.image_id, width=None if image is None else image.shape[1],
            height=None if image is None else image.shape[0], message="is none" if image is None and n == 0 else None,
            reason="unreadable_image" if image is None and n == 0 else None,
        )
        for n, (row, image) in enumerate(zip(samples, pixels, strict=True))
    ]  # fmt: skip
    return stage_table(
        DECODED,
        table_of(IndexRow, samples),
        table_of(DecodedRow, rows),
        pixels_table(pixels),
        same_in_each(ReadFacts(read_seconds=0.5, decode_seconds=1.5), len(samples)),
        on_its_way(len(samples)),
    )


@pytest.fixture(params=["cpu", "meta"])
def stage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EncodeShards]:
    """The stage with `MadeEncoder` for a model: step by step, and with threads and a download as on a GPU."""
    monkeypatch.setattr(encode, "load_encoder", lambda settings, device: MadeEncoder())
    monkeypatch.setattr(encode, "worker_device", lambda _: torch.device(request.param))

    def make(batch_size: int = 4, feature_dtype: str = "model", budget: Budget = Budget("ratio", 0.5)) -> EncodeShards:  # noqa: B008
        return EncodeShards(EncodeSettings("made", "float32", batch_size, feature_dtype, SelectSettings(budget)))

    return make


CLOCKS = ["encode_began", "encode_seconds", "score_seconds", "select_seconds"]
RAGGED = [picture(number, columns) for number, columns in ((1, 8), (2, 12), (3, 5), (4, 8), (5, 9), (6, 12), (7, 1))]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_batches_split_anywhere_and_every_image_keeps_its_own_decision(stage, batch_size):
    together = stage(batch_size)
    rows = rows_among(EncodedRow, together(decoded_table(RAGGED)))
    sizes = together._encoder.batches
    assert sum(sizes) == len(RAGGED)
    assert set(sizes[:-1]) <= {batch_size}
    for number, (row, image) in enumerate(zip(rows, RAGGED, strict=True)):
        (alone,) = rows_among(EncodedRow, stage(1)(decoded_table([image])))
        assert row.selection.source == f"0/{number}.jpg"
        assert (row.selection.width, row.selection.height) == (image.shape[1], 2)
        assert row.selection.num_tokens == image.shape[1]
        assert row.selection.ranking == alone.selection.ranking
        assert row.selection.gain == pytest.approx(alone.selection.gain, rel=1e-5)
        assert row.features.features == alone.features.features


def test_the_same_shard_gives_the_same_table(stage):
    first, second = (stage(3)(decoded_table(RAGGED)).drop_columns(CLOCKS) for _ in range(2))
    assert first.equals(second)


def test_a_decision_tells_all_of_its_image(stage):
    table = stage(budget=Budget("count", 3))(decoded_table([picture(9, 6)]))
    assert table.schema == ENCODED
    (row,) = rows_among(EncodedRow, table)
    selection, features = row.selection, row.features
    assert (selection.num_tokens, selection.num_kept, selection.num_structure) == (6, 3, 1)
    assert (selection.structure, selection.image_grid_thw) == ([1], [1, 2, 6])
    assert [(p.tile, p.row, p.col) for p in selection.position] == [(0, 0, token) for token in selection.ranking]
    assert len(selection.sensitivity) == 6
    assert selection.sensitivity_min == min(selection.sensitivity)
    assert selection.sensitivity_max == max(selection.sensitivity)
    assert selection.sensitivity_mean == pytest.approx(np.mean(selection.sensitivity))
    assert selection.last_gain == selection.gain[-1]
    image = MadeEncoder()._encoded(picture(9, 6))
    stored = unpack_features(features.features)
    assert torch.equal(stored["features"], image.projected_NO[selection.ranking])
    assert torch.equal(stored["deepstack.0"], image.projected_NO[selection.ranking] + 1)
    assert (features.image_id, features.num_kept, features.width) == (selection.image_id, 3, 5)
    assert features.dtype == "float32"


def test_what_the_model_does_not_touch_passes_through_and_pixels_do_not(stage):
    batch = decoded_table([None, picture(1, 4), None])
    table = stage()(batch)
    untouched = [name for name in batch.column_names if name in table.column_names]
    assert table.select(untouched).equals(batch.select(untouched))
    assert set(batch.column_names) - set(untouched) == {"width", "height", "pixels", "pixels_shape"}
    rows = rows_among(EncodedRow, table)
    assert [(row.reason, row.selection is None, row.features is None) for row in rows] == [
        ("unreadable_image", True, True),
        (None, False, False),
        (None, True, True),
    ]
    facts = facts_among(EncodeFacts, table)
    assert facts.device in ("cpu", "meta")
    assert facts.encode_seconds > 0


def test_a_shard_without_pixels_needs_no_model(stage):
    empty = stage()
    table = empty(decoded_table([None, None]))
    assert empty._encoder.batches == []
    assert table.schema == ENCODED
    assert [row.selection for row in rows_among(EncodedRow, table)] == [None, None]
    assert facts_among(EncodeFacts, table).encode_seconds == 0.0


@pytest.mark.parametrize("spoilt", [[1], [0, 2], [0, 1, 2]])
def test_features_that_are_not_finite_spoil_no_other_image(stage, spoilt):
    images = [picture(NAN if n in spoilt else n + 1, 6) for n in range(3)]
    rows = rows_among(EncodedRow, stage()(decoded_table(images)))
    for n, row in enumerate(rows):
        if n in spoilt:
            assert (row.reason, row.selection, row.features) == ("non_finite_features", None, None)
            assert row.message == "the vision tower gave NaN or Inf in float32; try --dtype float32"
        else:
            (alone,) = rows_among(EncodedRow, stage()(decoded_table([images[n]])))
            assert row.reason is None
            assert row.features.features == alone.features.features


def test_features_beyond_the_stored_dtype_are_an_error_and_not_infinite(stage):
    images = [picture(1, 6), picture(LOUD, 6), picture(2, 6)]
    rows = rows_among(EncodedRow, stage(feature_dtype="float16")(decoded_table(images)))
    assert [row.reason for row in rows] == [None, "feature_overflow", None]
    assert (rows[1].selection, rows[1].features) == (None, None)
    assert "beyond the range of float16" in rows[1].message
    assert rows[0].features.dtype == "float16"
    assert [row.reason for row in rows_among(EncodedRow, stage()(decoded_table(images)))] == [None] * 3


def test_a_shard_that_ended_before_is_passed_on(stage):
    ended = ended_shard(3, DECODED, Status.STOPPED, "stopped before it began", "read")
    (row,) = stage()(ended).to_pylist()
    assert {name: value for name, value in row.items() if value is not None} == {
        "shard": 3,
        "status": "stopped",
        "failure": "stopped before it began",
        "stage": "read",
    }


def test_a_shard_whose_batch_does_not_fit_is_made_at_half_of_it_from_the_beginning(stage):
    """The third batch of four is the first that does not fit; the shard is then as a run at two makes it."""
    small = stage(4)
    own = small._encoder.encode

    def encode(packed: Packed) -> list[EncodedImage]:
        if len(packed.sizes) > 2 and any(width == 20 for _, width in packed.sizes):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return own(packed)

    small._encoder.encode = encode
    images = [*RAGGED, picture(8, 20), picture(9, 20), picture(10, 3)]
    table = small(decoded_table(images)).drop_columns(CLOCKS)
    assert small._encoder.batches == [4, 2, 2, 2, 2, 2]
    assert table.equals(stage(2)(decoded_table(images)).drop_columns(CLOCKS))
    assert facts_among(EncodeFacts, small(decoded_table(images))).batch_size == 2
    assert facts_among(EncodeFacts, small(decoded_table(RAGGED))).batch_size == 4


def test_memory_that_runs_out_while_the_next_batch_is_prepared_costs_the_shard_nothing(stage):
    """A launch fails at four images a batch while a thread prepares the next ones; what both did is forgotten."""
    small = stage(4)
    encode_own, pack_own = small._encoder.encode, small._encoder.pack
    out_of_memory, packed = threading.Event(), []

    def pack(pixels: list[np.ndarray], sizes: list[tuple[int, int]]) -> Packed:
        packed.append(len(pixels))
        if packed == [4, 4, 4] and threading.current_thread() is not threading.main_thread():
            assert out_of_memory.wait(10), "the second batch was to run out of memory before the third is prepared"
        return pack_own(pixels, sizes)

    def encode(packed: Packed) -> list[EncodedImage]:
        if len(packed.sizes) == 4 and packed.sizes[0][1] == 9:
            out_of_memory.set()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return encode_own(packed)

    small._encoder.encode, small._encoder.pack = encode, pack
    images = [*RAGGED, *RAGGED[:5]]
    table = small(decoded_table(images))
    assert facts_among(EncodeFacts, table).batch_size == 2
    assert table.drop_columns(CLOCKS).equals(stage(2)(decoded_table(images)).drop_columns(CLOCKS))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("prepare", "finish"))]


def test_an_image_that_cannot_be_packed_gives_up_its_shard_and_no_other(stage):
    """What a thread raises is tried again, told with its own lines, and neither hangs nor spoils the next shard."""
    broken = stage(2)
    own = broken._encoder.pack

    def pack(pixels: list[np.ndarray], sizes: list[tuple[int, int]]) -> Packed:
        if any(image.shape[1] == 9 for image in pixels):
            raise ValueError("all the input array dimensions must match")
        return own(pixels, sizes)

    broken._encoder.pack = pack
    broken._runner = StageRunner("encode", Policy(retries=1, pause_sec=0.0))
    (row,) = broken(decoded_table(RAGGED)).to_pylist()
    assert (row["status"], row["stage"]) == (Status.GIVEN_UP, "encode")
    assert row["failure"].startswith("stage encode: ValueError: all the input array dimensions must match\n")
    assert "in pack" in row["failure"]
    assert row["failure"].endswith("(tried 2 times)")
    others = [image for image in RAGGED if image.shape[1] != 9]
    assert broken(decoded_table(others)).drop_columns(CLOCKS).equals(
        stage(2)(decoded_table(others)).drop_columns(CLOCKS)
    )  # fmt: skip


def test_a_model_that_cannot_be_used_is_said_of_every_shard(tmp_path: Path):
    settings = EncodeSettings(str(tmp_path), "float32", 4, "model", SelectSettings(Budget("all")))
    stage = EncodeShards(settings)
    for _ in range(2):
        (row,) = stage(decoded_table([picture(1, 4)])).to_pylist()
        assert row["status"] == Status.REFUSED
        assert str(tmp_path) in row["failure"]
