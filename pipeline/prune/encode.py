"""Stage encode (+ score + select): the model actor. A shard's prepared pixels in, its selections and features out."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.artifact.payload import pack_features
from pipeline.cluster.attempts import Policy, StageRunner
from pipeline.cluster.device import worker_device
from pipeline.cluster.outcomes import Status, ended_shard, passed_on
from pipeline.errors import UserError
from pipeline.families.base import EncodedImage, Encoder, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.loading import limit_threads
from pipeline.prune.read import DECODED
from pipeline.prune.select import Selection, SelectSettings, select_tokens
from schemas.tables import SELECTIONS

_DECISION = [name for name in SELECTIONS.names if name not in DECODED.names]

# A decoded row without its pixels, plus the decision and the kept features of an image that was encoded.
ENCODED = pa.schema(
    [
        *(f for f in DECODED if f.name not in ("pixels", "pixels_shape")),
        *(SELECTIONS.field(name) for name in _DECISION),
        ("features", pa.large_binary()),
        ("features_width", pa.int32()),
        ("features_dtype", pa.string()),
        ("device", pa.string()),
        ("encode_began", pa.float64()),  # seconds since the epoch
        ("encode_seconds", pa.float64()),
        ("score_seconds", pa.float64()),
        ("select_seconds", pa.float64()),
    ]
)


@dataclass(frozen=True)
class EncodeSettings:
    """What the model actor needs to know."""

    model: str
    dtype: str  # of tower and projector; scoring is float32 whatever it is
    batch_size: int  # images a forward pass
    feature_dtype: str
    select: SelectSettings
    device: str = "cpu"  # or "cuda", or "auto": CUDA where the worker sees it
    policy: Policy = Policy()


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
        self._refused: str | None = None  # why the model can't be used: in shards' outcomes, not in a dying worker
        try:
            self._device = worker_device(settings.device)
            self._encoder = self._runner.load(lambda: load_encoder(settings, self._device))
        except UserError as error:
            self._refused = str(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`DECODED` rows of a shard to `ENCODED` rows."""
        shard = batch["shard"][0].as_py()
        ended = passed_on(batch, ENCODED)
        if ended is not None:
            return ended
        if self._refused is not None:
            return ended_shard(shard, ENCODED, Status.REFUSED, self._refused, "encode")
        return self._runner.run(shard, ENCODED, lambda: self.encode_shard(batch))

    def encode_shard(self, batch: pa.Table) -> pa.Table:
        """`DECODED` rows of a healthy shard to `ENCODED` rows."""
        began = time.time()
        rows = batch.drop_columns(["pixels", "pixels_shape"]).to_pylist()
        pixels, shapes = batch["pixels"].combine_chunks(), batch["pixels_shape"].to_pylist()
        todo = [n for n, shape in enumerate(shapes) if shape is not None]
        seconds = {"encode": 0.0, "score": 0.0, "select": 0.0}
        step = self._settings.batch_size
        for begin in range(0, len(todo), step):
            numbers = todo[begin : begin + step]
            arrays = [np.frombuffer(_bytes_of(pixels[n]), np.uint8).reshape(shapes[n]) for n in numbers]
            self._encode_batch([rows[n] for n in numbers], arrays, seconds)
        for row in rows:
            row.update({f"{stage}_seconds": value for stage, value in seconds.items()})
            row.update(encode_began=began, device=self._device.type)
        return pa.Table.from_pylist(rows, ENCODED)

    def _encode_batch(self, rows: list[dict[str, Any]], pixels: list[np.ndarray], seconds: dict[str, float]) -> None:
        started = time.perf_counter()
        images = self._encoder.encode(pixels, [(row["height"], row["width"]) for row in rows])
        good = [_is_finite(image) for image in images]
        seconds["encode"] += time.perf_counter() - started
        for row, fine in zip(rows, good, strict=True):
            if not fine:
                row.update(
                    reason="non_finite_features",
                    message=f"the vision tower gave NaN or Inf in {self._settings.dtype}; try --dtype float32",
                )
        kept = [(row, image) for row, image, fine in zip(rows, images, good, strict=True) if fine]
        if not kept:
            return
        selections = select_tokens(
            [image for _, image in kept],
            [row["image_id"] for row, _ in kept],
            self._encoder.projector,
            self._settings.select,
            seconds,
        )
        for (row, image), selection in zip(kept, selections, strict=True):
            try:
                stored = kept_features(image, selection, self._settings.feature_dtype)
            except OverflowError as error:
                row.update(reason="feature_overflow", message=str(error))
            else:
                row.update(decision_of(image, selection), **stored)


def _bytes_of(scalar: pa.LargeBinaryScalar) -> memoryview:
    return memoryview(scalar.as_buffer())


def _is_finite(image: EncodedImage) -> bool:
    return bool(torch.isfinite(image.features_ND).all() and torch.isfinite(image.projected_NO).all())


def decision_of(image: EncodedImage, selection: Selection) -> dict[str, Any]:
    """Columns of `selections` that the model decides."""
    ranking = selection.ranking_K.tolist()
    sensitivity = None if selection.sensitivity_N is None else selection.sensitivity_N.numpy()
    rows, cols, tiles = image.grid
    places = image.places()[selection.ranking_K].tolist()
    return {
        "num_tokens": len(image.projected_NO),
        "num_kept": len(ranking),
        "num_structure": len(image.structure),
        "grid": {"rows": rows, "cols": cols, "tiles": tiles},
        "segments": [vars(segment) for segment in image.segments],
        "structure": list(image.structure),
        "image_grid_thw": image.image_grid_thw,
        "ranking": ranking,
        "gain": selection.gain_K.numpy(),
        "sensitivity": sensitivity,
        "position": [dict(zip(("tile", "row", "col"), place, strict=True)) for place in places],
        "sensitivity_min": None if sensitivity is None else float(sensitivity.min()),
        "sensitivity_mean": None if sensitivity is None else float(sensitivity.astype(np.float64).mean()),
        "sensitivity_max": None if sensitivity is None else float(sensitivity.max()),
        "last_gain": float(selection.gain_K[-1]),
    }


def kept_features(image: EncodedImage, selection: Selection, feature_dtype: str) -> dict[str, Any]:
    """Columns of `ENCODED` that hold the kept features, best token first."""
    picks = selection.ranking_K.to(image.projected_NO.device)
    tensors = {"features": image.projected_NO[picks]}
    tensors.update({name: rows_NO[picks] for name, rows_NO in image.extras_NO.items()})
    stored = str(image.projected_NO.dtype).removeprefix("torch.") if feature_dtype == "model" else feature_dtype
    return {
        "features": pack_features(tensors, feature_dtype),
        "features_width": image.projected_NO.shape[1],
        "features_dtype": stored,
    }
