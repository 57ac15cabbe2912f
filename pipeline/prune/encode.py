"""Stage encode, score and select: the model actor. A shard's prepared pixels in, its selections and features out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.artifact.payload import pack_features
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.device import worker_device
from pipeline.cluster.outcomes import Status, ended_shard, passed_on, stopped_shard
from pipeline.cluster.run_folder import StopFile
from pipeline.errors import UserError
from pipeline.families.base import EncodedImage, Encoder, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.loading import limit_threads
from pipeline.prune.rows import (
    ENCODED,
    DecodedRow,
    EncodedRow,
    EncodeFacts,
    pixels_of,
    rows_among,
    same_in_each,
    stage_table,
)
from pipeline.prune.select import Selection, SelectSettings, select_tokens
from schemas.columns import structs_of, table_of
from schemas.selections import FeatureRow, Grid, Position, SegmentRow, SelectionRow


@dataclass(frozen=True)
class EncodeSettings:
    """What the model actor needs to know."""

    model: str
    dtype: str  # of tower and projector; scoring is float32 whatever it is
    batch_size: int  # images a forward pass; a shard for which memory runs out is made with less
    feature_dtype: str
    select: SelectSettings
    device: str = "cpu"  # or "cuda", or "auto": CUDA where the worker sees it
    policy: Policy = Policy()
    stop_file: StopFile | None = None  # while it exists no further shard is begun
    keep_features: bool = True  # False: nothing but decisions is handed on


def load_encoder(settings: EncodeSettings, device: torch.device) -> Encoder:
    """Vision tower and projector of the settings' model; on a CPU this process then uses one thread."""
    if device.type == "cpu":
        limit_threads(1)
    checkpoint, family = open_checkpoint(settings.model)
    return family.encoder(checkpoint, device, torch_dtype(settings.dtype))


class EncodeShards:
    """Loads vision tower and projector once; each call encodes, scores and ranks one shard in mini-batches."""

    def __init__(self, settings: EncodeSettings) -> None:
        self._settings = settings
        self._runner = StageRunner("encode", settings.policy)
        self.refused: str | None = None  # why the model can't be used: in shards' outcomes, not in a dying worker
        try:
            self._device = worker_device(settings.device)
            self._encoder = self._runner.load(lambda: load_encoder(settings, self._device))
        except UserError as error:
            self.refused = str(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A shard's table of `DECODED` to its table of `ENCODED`."""
        shard = batch["shard"][0].as_py()
        ended = passed_on(batch, ENCODED)
        if ended is not None:
            return ended
        if self.refused is not None:
            return ended_shard(shard, ENCODED, Status.REFUSED, self.refused, "encode")
        if self._settings.stop_file is not None and self._settings.stop_file.is_there:
            return stopped_shard(shard, ENCODED, "encode")
        return self._runner.run_batches(
            shard, ENCODED, self._settings.batch_size, lambda batch_size: self.encode_shard(batch, batch_size)
        )

    def encode_shard(self, batch: pa.Table, batch_size: int) -> pa.Table:
        """The table `ENCODED` of a healthy shard's table `DECODED`, `batch_size` images a forward pass."""
        began = time.time()
        rows, pixels = rows_among(DecodedRow, batch), pixels_of(batch)
        encoded = [_without_selection(row.reason, row.message) for row in rows]
        seconds = {"encode": 0.0, "score": 0.0, "select": 0.0}
        owners = [(n, row, image) for n, (row, image) in enumerate(zip(rows, pixels, strict=True)) if image is not None]
        for begin in range(0, len(owners), batch_size):
            numbers, some, images = zip(*owners[begin : begin + batch_size], strict=True)
            for number, row in zip(numbers, self._encode_batch(some, images, seconds), strict=True):
                encoded[number] = row
        facts = EncodeFacts(
            device=self._device.type,
            batch_size=batch_size,
            encode_began=began,
            encode_seconds=seconds["encode"],
            score_seconds=seconds["score"],
            select_seconds=seconds["select"],
        )
        return stage_table(ENCODED, batch, table_of(EncodedRow, encoded), same_in_each(facts, len(rows)))

    def _encode_batch(
        self, rows: Sequence[DecodedRow], pixels: Sequence[np.ndarray], seconds: dict[str, float]
    ) -> list[EncodedRow]:
        started = time.perf_counter()
        images = self._encoder.encode(pixels, [size_of(row) for row in rows])
        good = [n for n, image in enumerate(images) if _is_finite(image)]
        seconds["encode"] += time.perf_counter() - started
        message = f"the vision tower gave NaN or Inf in {self._settings.dtype}; try --dtype float32"
        encoded = [_without_selection("non_finite_features", message) for _ in rows]
        if not good:
            return encoded
        selections = select_tokens(
            [images[n] for n in good],
            [image_id_of(rows[n]) for n in good],
            self._encoder.projector,
            self._settings.select,
            seconds,
        )
        for n, selection in zip(good, selections, strict=True):
            encoded[n] = self._encoded(rows[n], images[n], selection)
        return encoded

    def _encoded(self, row: DecodedRow, image: EncodedImage, selection: Selection) -> EncodedRow:
        features = None
        try:
            if self._settings.keep_features:
                features = kept_features(row, image, selection, self._settings.feature_dtype)
        except OverflowError as error:
            return _without_selection("feature_overflow", str(error))
        decision = decision_of(row, image, selection)
        return EncodedRow(reason=None, message=None, selection=decision, features=features)


def _without_selection(reason: str | None, message: str | None) -> EncodedRow:
    return EncodedRow(reason=reason, message=message, selection=None, features=None)


def _is_finite(image: EncodedImage) -> bool:
    return bool(torch.isfinite(image.features_ND).all() and torch.isfinite(image.projected_NO).all())


def image_id_of(row: DecodedRow) -> str:
    """The id of a row's image, which was decoded."""
    assert row.image_id is not None, "an image that was decoded was hashed before"
    return row.image_id


def size_of(row: DecodedRow) -> tuple[int, int]:
    """Height and width of a row's image, which was decoded."""
    assert row.height is not None, "an image that was decoded has a size"
    assert row.width is not None, "an image that was decoded has a size"
    return row.height, row.width


def decision_of(row: DecodedRow, image: EncodedImage, selection: Selection) -> SelectionRow:
    """The row of the selections table of an image that was encoded and ranked."""
    height, width = size_of(row)
    ranking, gain = selection.ranking_K.tolist(), selection.gain_K.tolist()
    sensitivity = None if selection.sensitivity_N is None else selection.sensitivity_N.numpy()
    rows, cols, tiles = image.grid
    tile, row_in_grid, col = image.places()[selection.ranking_K].numpy().T
    return SelectionRow(
        image_id=image_id_of(row),
        source=row.source,
        shard=row.shard,
        width=width,
        height=height,
        num_tokens=len(image.projected_NO),
        num_kept=len(ranking),
        num_structure=len(image.structure),
        grid=Grid(rows=rows, cols=cols, tiles=tiles),
        segments=[SegmentRow(**vars(segment)) for segment in image.segments],
        structure=list(image.structure),
        image_grid_thw=None if image.image_grid_thw is None else list(image.image_grid_thw),
        ranking=ranking,
        gain=gain,
        sensitivity=None if sensitivity is None else sensitivity.tolist(),
        position=structs_of(Position, tile=tile, row=row_in_grid, col=col),
        sensitivity_min=None if sensitivity is None else float(sensitivity.min()),
        sensitivity_mean=None if sensitivity is None else float(sensitivity.astype(np.float64).mean()),
        sensitivity_max=None if sensitivity is None else float(sensitivity.max()),
        last_gain=gain[-1],
    )


def kept_features(row: DecodedRow, image: EncodedImage, selection: Selection, feature_dtype: str) -> FeatureRow:
    """The row of the features table of an image: its kept features, best token first.

    Raises:
        OverflowError: a value does not fit into the stored dtype.
    """
    picks = selection.ranking_K.to(image.projected_NO.device)
    tensors = {"features": image.projected_NO[picks]}
    tensors.update({name: rows_NO[picks] for name, rows_NO in image.extras_NO.items()})
    stored = str(image.projected_NO.dtype).removeprefix("torch.") if feature_dtype == "model" else feature_dtype
    return FeatureRow(
        image_id=image_id_of(row),
        num_kept=len(picks),
        width=image.projected_NO.shape[1],
        dtype=stored,
        features=pack_features(tensors, feature_dtype),
    )
