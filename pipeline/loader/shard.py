"""A committed shard of a pruned artifact as it is answered: its prompts, and the images they ask about at a budget."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.payload import unpack_features
from pipeline.artifact.tables import PARQUET, PAYLOADS, TAR
from pipeline.budget import Budget, GainBudget
from pipeline.errors import UserError
from pipeline.families.base import KeptImage
from pipeline.loader.payloads import payloads_in_parquet, payloads_in_tar
from pipeline.storage import StorageError
from schemas.columns import rows_of, schema_of
from schemas.records import CommitRecord, JobRecord, RecordError
from schemas.selections import PayloadRow
from schemas.statuses import PromptStatus
from schemas.stored import StoredPrompt, StoredSelection


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """What one shard asks."""

    prompts: list[StoredPrompt]  # those that can be posed, in corpus order
    images: dict[str, KeptImage]  # by image id, also those of other shards; without those that have no selection
    sources: dict[str, str]  # sha256 of each file that was read, by its path in the artifact


class ShardLoader:
    """Reads shards of one pruned artifact.

    Raises:
        UserError: the folder holds no artifact of a prune job, one of another schema version, or one without features.
    """

    def __init__(self, artifact: Artifact) -> None:
        check_features(artifact, artifact.require_job("prune", "--pruned"))
        self._artifact = artifact

    def load(self, shard: int, budget: Budget | GainBudget) -> LoadedShard:
        """Read a shard's prompts and their images; each commit record and each file is opened once.

        Args:
            shard: a committed one.
            budget: tokens of each image; an image that has fewer stored gives all that it has.

        Raises:
            RecordError: a file is not the one that its commit record names.
        """
        reading = _Reading(self._artifact, budget)
        record = reading.commit(shard)
        prompts = reading.prompts(record)
        return LoadedShard(prompts, reading.images_of(prompts, record), reading.sources)

    def load_images(self, prompts: Sequence[StoredPrompt], budget: Budget | GainBudget) -> LoadedShard:
        """As `load`, with prompts that are known already: of the pruned files those of their images alone are read."""
        reading = _Reading(self._artifact, budget)
        return LoadedShard(list(prompts), reading.images_of(prompts), reading.sources)


def check_features(pruned: Artifact, prune_job: JobRecord) -> None:
    """Refuse an artifact that holds rankings alone.

    Raises:
        UserError: saying what would have to be pruned.
    """
    if prune_job.settings.get("features") == "none":
        raise UserError(
            f"--pruned {pruned.address} was pruned with --features none: it holds rankings alone, and images are "
            "answered from stored features; prune it into another --output with --features webdataset or parquet"
        )


@dataclass
class _Reading:
    """The reading of one shard, with what was found on the way."""

    artifact: Artifact
    budget: Budget | GainBudget
    sources: dict[str, str] = field(default_factory=dict)

    def images_of(self, prompts: Sequence[StoredPrompt], known: CommitRecord | None = None) -> dict[str, KeptImage]:
        by_shard: defaultdict[int, set[str]] = defaultdict(set)
        for prompt in prompts:
            by_shard[prompt.image_shard].add(prompt.image_id)
        images: dict[str, KeptImage] = {}
        for number, wanted in by_shard.items():
            record = known if known is not None and known.shard == number else self.commit(number)
            images.update(self.images(record, wanted))
        return images

    def commit(self, shard: int) -> CommitRecord:
        record = self.artifact.read_commit(shard)
        if record is None:
            raise RuntimeError(f"shard {shard} of {self.artifact.address} is not committed")
        return record

    def prompts(self, record: CommitRecord) -> list[StoredPrompt]:
        with self.artifact.opened(record, "prompts", self.sources) as stream:
            table = pq.read_table(stream, columns=["status", *schema_of(StoredPrompt).names])
        return rows_of(StoredPrompt, table.filter(pc.equal(table["status"], PromptStatus.OK)).drop_columns(["status"]))

    def images(self, record: CommitRecord, wanted: set[str]) -> dict[str, KeptImage]:
        with self.artifact.opened(record, "selections", self.sources, in_parts=True) as stream:
            table = self.checked(record, stream)
        mask = pc.is_in(table["image_id"], value_set=pa.array(sorted(wanted), pa.string()))
        rows = {row.image_id: row for row in rows_of(StoredSelection, table.filter(mask))}
        if not rows:
            return {}
        with self.artifact.opened(record, PAYLOADS, self.sources) as stream:
            payloads = dict(enumerate(rows_of(PayloadRow, pq.read_table(stream))))
        found = {place: row for place, row in payloads.items() if row.image_id in rows}
        missing = sorted(rows.keys() - {row.image_id for row in found.values()})
        if missing:
            raise RuntimeError(f"features of image {missing[0]} are not in shard {record.shard}")
        form, read = (TAR, payloads_in_tar) if TAR in record.files else (PARQUET, payloads_in_parquet)
        images = {}
        with self.artifact.opened(record, form, self.sources, in_parts=True) as stream:
            for row, payload in read(stream, found):
                if hashlib.sha256(payload).hexdigest() != row.sha256:
                    raise RecordError(
                        f"{self.artifact.address}: the features of image {row.image_id} in {record.files[form].path} "
                        f"differ from their sha256 in {record.files[PAYLOADS].path}"
                    )
                images[row.image_id] = kept_image(rows[row.image_id], payload, self.budget)
        return images

    def checked(self, record: CommitRecord, stream: BinaryIO) -> pa.Table:
        """The columns of the selections that answering reads, whose pages are compared with their checksums."""
        try:
            return pq.read_table(stream, columns=schema_of(StoredSelection).names, page_checksum_verification=True)
        except StorageError:
            raise
        except (pa.ArrowException, OSError) as error:
            path = record.files["selections"].path
            raise RecordError(f"{self.artifact.address}: {path} can't be read ({error}); it was altered") from error


def kept_image(row: StoredSelection, payload: bytes, budget: Budget | GainBudget) -> KeptImage:
    """One stored image at a budget: the first k tokens of its ranking, in raster order.

    Args:
        row: of the image.
        payload: its stored features, in pick order.
        budget: the k; never more than are stored.
    """
    k = budget.kept(row.num_tokens, row.gain)
    indices, order = torch.tensor(row.ranking[:k], dtype=torch.int64).sort()
    tensors = {name: rows[:k][order] for name, rows in unpack_features(payload).items()}
    return KeptImage(row.image_id, row, indices, tensors.pop("features"), tensors)
