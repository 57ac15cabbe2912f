"""Reading pruned images back: a committed shard of an artifact as images at a budget, with the prompts about them."""

import tarfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import torch

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.payload import unpack_features
from pipeline.budget import Budget
from pipeline.families.base import KeptImage
from schemas.records import CommitRecord

_SUFFIX = ".features.safetensors"


def load_prompts(artifact: Artifact, shard: int, used: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The prompts of a shard that can be posed, in corpus order.

    Args:
        artifact: of a prune job.
        shard: committed.
        used: takes the sha256 of each file that was read, by its path in the artifact.

    Raises:
        UserError: no artifact of a prune job, or one of another schema version.
        RecordError: a file is not the one that its commit record names.
    """
    artifact.require_job("prune", "--pruned")
    with artifact.opened(_commit(artifact, shard), "prompts", used) as stream:
        return [row for row in pq.read_table(stream).to_pylist() if row["status"] == "ok"]


def load_images(
    artifact: Artifact, image_shards: dict[str, int], budget: Budget, used: dict[str, str] | None = None
) -> dict[str, KeptImage]:
    """Kept images at a budget. Raises as `load_prompts` does.

    Args:
        artifact: of a prune job.
        image_shards: the wanted image ids, each with the shard that holds it.
        budget: at most what is stored.
        used: takes the sha256 of each file that was read, by its path in the artifact.

    Returns:
        the images by id, without those that have no selection.
    """
    artifact.require_job("prune", "--pruned")
    by_shard: dict[int, set[str]] = defaultdict(set)
    for image_id, shard in image_shards.items():
        by_shard[shard].add(image_id)
    images = {}
    missing = set()
    for shard, wanted in by_shard.items():
        record = _commit(artifact, shard)
        with artifact.opened(record, "selections", used) as stream:
            file = pq.ParquetFile(stream)
            table = file.read([name for name in file.schema_arrow.names if name != "sensitivity"])
        rows = {row["image_id"]: row for row in table.to_pylist() if row["image_id"] in wanted}
        for image_id, payload in _payloads(artifact, record, set(rows), used):
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


def _payloads(
    artifact: Artifact, record: CommitRecord, wanted: set[str], used: dict[str, str] | None
) -> Iterator[tuple[str, bytes]]:
    """Stored feature payloads of the wanted images, from whichever form the artifact has."""
    if "features.parquet" in record.files:
        with artifact.opened(record, "features.parquet", used) as stream:
            table = pq.read_table(stream, columns=["image_id", "features"])
        for image_id, payload in zip(table["image_id"], table["features"], strict=True):
            if image_id.as_py() in wanted:
                yield image_id.as_py(), payload.as_py()
        return
    with (
        artifact.opened(record, "features.webdataset", used) as stream,
        tarfile.open(fileobj=stream, mode="r:") as archive,
    ):
        for member in archive:
            image_id = member.name.removesuffix(_SUFFIX)
            if member.name.endswith(_SUFFIX) and image_id in wanted:
                content = archive.extractfile(member)
                assert content is not None, "regular members have a stream"
                yield image_id, content.read()


def _commit(artifact: Artifact, shard: int) -> CommitRecord:
    record = artifact.read_commit(shard)
    if record is None:
        raise RuntimeError(f"shard {shard} of {artifact.root} is not committed")
    return record
