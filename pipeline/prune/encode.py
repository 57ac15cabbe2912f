"""Stage encode, score and select: the model actor. A shard's prepared pixels in, its selections and features out."""

import time
from collections.abc import Mapping, Sequence
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
from pipeline.families.base import EncodedImage, Encoder, Packed, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.loading import limit_threads
from pipeline.prune.ahead import Download, Laps, worked_ahead
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
from pipeline.prune.select import Ranked, Selection, SelectSettings, TokenSelector
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


@dataclass(frozen=True)
class _Prepared:
    """A batch before the device knows of it."""

    places: Sequence[int]  # of its rows in the shard
    rows: Sequence[DecodedRow]
    packed: Packed
    seconds: float  # that preparing took


@dataclass(frozen=True)
class _Launched:
    """A batch on the device, whose results are on their way."""

    batch: _Prepared
    images: Sequence[EncodedImage]  # without their rows
    ranked: Ranked
    kept: Sequence[str]  # names of the members of the features, in the order of the download
    download: Download
    laps: Laps


class EncodeShards:
    """Loads vision tower and projector once; each call encodes, scores and ranks one shard in mini-batches."""

    def __init__(self, settings: EncodeSettings) -> None:
        self._settings = settings
        self._runner = StageRunner("encode", settings.policy)
        self.refused: str | None = None  # why the model can't be used: in shards' outcomes, not in a dying worker
        try:
            self._device = worker_device(settings.device)
            self._encoder = self._runner.load(lambda: load_encoder(settings, self._device))
            self._selector = TokenSelector(self._encoder.projector, settings.select)
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
        batches = [owners[begin : begin + batch_size] for begin in range(0, len(owners), batch_size)]
        for launched, done in worked_ahead(batches, self._prepare, self._launch, self._finish, self._device):
            launched.laps.add_to(seconds)
            seconds["encode"] += launched.batch.seconds
            for place, row in zip(launched.batch.places, done, strict=True):
                encoded[place] = row
        facts = EncodeFacts(
            device=self._device.type,
            batch_size=batch_size,
            encode_began=began,
            encode_seconds=seconds["encode"],
            score_seconds=seconds["score"],
            select_seconds=seconds["select"],
        )
        return stage_table(ENCODED, batch, table_of(EncodedRow, encoded), same_in_each(facts, len(rows)))

    def _prepare(self, batch: Sequence[tuple[int, DecodedRow, np.ndarray]]) -> _Prepared:
        started = time.perf_counter()
        places, rows, pixels = zip(*batch, strict=True)
        packed = self._encoder.pack(pixels, [size_of(row) for row in rows])
        return _Prepared(places, rows, packed, time.perf_counter() - started)

    def _launch(self, batch: _Prepared) -> _Launched:
        """Encode, score and rank a batch. On a GPU this returns before any of it is done."""
        laps = Laps(self._device)
        images = self._encoder.encode(batch.packed)
        finite_B = torch.stack([_are_finite(image) for image in images])
        laps.lap("encode")
        ranked = self._selector.rank(images, [image_id_of(row) for row in batch.rows], laps)
        kept: dict[str, list[torch.Tensor]] = {}
        if self._settings.keep_features:
            kept["features"] = ranked.kept([image.projected_NO for image in images])
            for name in images[0].extras_NO:
                kept[name] = ranked.kept([image.extras_NO[name] for image in images])
        tensors = [finite_B, *ranked.tensors(), *(rows_KO for of_all in kept.values() for rows_KO in of_all)]
        download = Download(tensors, self._device)
        return _Launched(batch, [image.without_rows() for image in images], ranked, list(kept), download, laps)

    def _finish(self, launched: _Launched) -> tuple[_Launched, list[EncodedRow]]:
        """The rows of a batch, when its results have come."""
        finite_B, *tensors = launched.download.wait()
        count, members = len(launched.images), len(launched.kept)
        few = len(tensors) - count * members
        spoilt = [number for number, finite in enumerate(finite_B.tolist()) if not finite]
        selections = launched.ranked.selections(tensors[:few], ignoring=spoilt)
        message = f"the vision tower gave NaN or Inf in {self._settings.dtype}; try --dtype float32"
        encoded = []
        for number, (row, image) in enumerate(zip(launched.batch.rows, launched.images, strict=True)):
            if number in spoilt:
                encoded.append(_without_selection("non_finite_features", message))
                continue
            kept = {name: tensors[few + place * count + number] for place, name in enumerate(launched.kept)}
            encoded.append(self._encoded(row, image, selections[number], kept))
        return launched, encoded

    def _encoded(
        self, row: DecodedRow, image: EncodedImage, selection: Selection, kept: Mapping[str, torch.Tensor]
    ) -> EncodedRow:
        features = None
        try:
            if kept:
                features = feature_row(row, kept, self._settings.feature_dtype)
        except OverflowError as error:
            return _without_selection("feature_overflow", str(error))
        decision = decision_of(row, image, selection)
        return EncodedRow(reason=None, message=None, selection=decision, features=features)


def _without_selection(reason: str | None, message: str | None) -> EncodedRow:
    return EncodedRow(reason=reason, message=message, selection=None, features=None)


def _are_finite(image: EncodedImage) -> torch.Tensor:
    return torch.isfinite(image.features_ND).all() & torch.isfinite(image.projected_NO).all()


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
        num_tokens=image.num_tokens,
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


def kept_rows(image: EncodedImage, selection: Selection) -> dict[str, torch.Tensor]:
    """The features of an image that a selection keeps, best token first, by the name of their member."""
    picks_K = selection.ranking_K.to(image.projected_NO.device)
    return {name: rows_NO[picks_K] for name, rows_NO in {"features": image.projected_NO, **image.extras_NO}.items()}


def feature_row(row: DecodedRow, kept: Mapping[str, torch.Tensor], feature_dtype: str) -> FeatureRow:
    """The row of the features table of an image: its kept features, best token first.

    Raises:
        OverflowError: a value does not fit into the stored dtype.
    """
    features_KO = kept["features"]
    stored = str(features_KO.dtype).removeprefix("torch.") if feature_dtype == "model" else feature_dtype
    return FeatureRow(
        image_id=image_id_of(row),
        num_kept=features_KO.shape[0],
        width=features_KO.shape[1],
        dtype=stored,
        features=pack_features(kept, feature_dtype),
    )
