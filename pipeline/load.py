"""Reading pruned images back: a committed shard of an artifact as images at a budget, with the prompts about them."""

import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from pipeline.artifact import Artifact
from pipeline.budget import Budget
from pipeline.families.base import KeptImage
from pipeline.payload import unpack_features
from schemas.records import CommitRecord

_SUFFIX = ".features.safetensors"


def load_prompts(artifact: Artifact, shard: int) -> list[dict[str, Any]]:
    """The prompts of a shard that can be posed, in corpus order."""
    table = pq.read_table(_path(artifact, shard, "prompts"))
    return [row for row in table.to_pylist() if row["status"] == "ok"]


def load_images(artifact: Artifact, image_shards: dict[str, int], budget: Budget) -> dict[str, KeptImage]:
    """Kept images at a budget.

    Args:
        artifact: of a prune job.
        image_shards: the wanted image ids, each with the shard that holds it.
        budget: at most what is stored.

    Returns:
        the images by id, without those that have no selection.
    """
    by_shard: dict[int, set[str]] = defaultdict(set)
    for image_id, shard in image_shards.items():
        by_shard[shard].add(image_id)
    images = {}
    missing = set()
    for shard, wanted in by_shard.items():
        columns = [name for name in pq.read_schema(_path(artifact, shard, "selections")).names if name != "sensitivity"]
        table = pq.read_table(_path(artifact, shard, "selections"), columns=columns)
        rows = {row["image_id"]: row for row in table.to_pylist() if row["image_id"] in wanted}
        for image_id, payload in _payloads(artifact, shard, set(rows)):
            images[image_id] = kept_image(rows[image_id], payload, budget)
        missing |= rows.keys() - images.keys()
    if missing:
        raise RuntimeError(f"features of image {min(missing)} are not in shard {image_shards[min(missing)]}")
    return images


def kept_image(row: dict[str, Any], payload: bytes, budget: Budget) -> KeptImage:
    """One stored image at a budget: the first k of its ranking, put into raster order."""
    k = min(budget.of(row["num_tokens"]), row["num_kept"])
    indices, order = torch.tensor(row["ranking"][:k], dtype=torch.int64).sort()
    tensors = {name: rows[:k][order] for name, rows in unpack_features(payload).items()}
    return KeptImage(row["image_id"], row, indices, tensors.pop("features"), tensors)


def _payloads(artifact: Artifact, shard: int, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Stored feature payloads of the wanted images, from whichever form the artifact has."""
    record = _commit(artifact, shard)
    if "features.parquet" in record.files:
        table = pq.read_table(artifact.root / record.files["features.parquet"].path, columns=["image_id", "features"])
        for image_id, payload in zip(table["image_id"], table["features"], strict=True):
            if image_id.as_py() in wanted:
                yield image_id.as_py(), payload.as_py()
        return
    with tarfile.open(artifact.root / record.files["features.webdataset"].path, "r:") as archive:
        for member in archive:
            image_id = member.name.removesuffix(_SUFFIX)
            if member.name.endswith(_SUFFIX) and image_id in wanted:
                stream = archive.extractfile(member)
                assert stream is not None, "regular members have a stream"
                yield image_id, stream.read()


def _commit(artifact: Artifact, shard: int) -> CommitRecord:
    record = artifact.read_commit(shard)
    if record is None:
        raise RuntimeError(f"shard {shard} of {artifact.root} is not committed")
    return record


def _path(artifact: Artifact, shard: int, table: str) -> Path:
    return artifact.root / _commit(artifact, shard).files[table].path
