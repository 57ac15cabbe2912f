"""The stages of a prune job on a few batches, in this process: how long they take and how large their results are."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

from pipeline.artifact.payload import pack_features, unpack_features
from pipeline.artifact.tables import member_sizes, table_size
from pipeline.cluster.memory import NoBatchFitsError, at_fitting_batch
from pipeline.errors import UserError
from pipeline.prune.encode import EncodeSettings, EncodeShards
from pipeline.prune.read import decode_samples, preparer_of
from pipeline.prune.rows import EncodeFacts, ReadFacts, facts_among, nested_table, rows_among
from schemas.columns import rows_of, table_of
from schemas.samples import IndexRow, Sample
from schemas.selections import FeatureRow, SelectionRow

BATCHES = 4  # that are measured, after one that only warms up
PACKED = 8  # images whose features are packed in every dtype


@dataclass(frozen=True)
class Size:
    """The bytes of a file: `base`, and `each` for every row."""

    base: float
    each: float

    @classmethod
    def of(cls, rows: pa.Table) -> "Size":
        """Of the Parquet files of which these are some rows: what two halves take more than the whole is the base."""
        whole = table_size(rows)
        if len(rows) < 2:
            base = float(table_size(rows.slice(0, 0)))
            return cls(base, whole - base)
        half = len(rows) // 2
        base = float(table_size(rows.slice(0, half)) + table_size(rows.slice(half)) - whole)
        return cls(base, (whole - base) / len(rows))

    def at(self, rows: float, files: float) -> float:
        """Bytes of so many rows in so many files."""
        return files * self.base + rows * self.each


@dataclass(frozen=True)
class Decisions:
    """How large the decisions about images are."""

    kept: float  # tokens of an image, on average
    selection: Size  # of the selections table
    selection_token: float  # bytes that a further token adds to a row of it
    member: float  # bytes of a JSON member of a tar
    member_token: float


@dataclass(frozen=True)
class Measured:
    """What a few batches told."""

    device: str
    batch_size: int
    images: int  # that were measured
    failed: Mapping[str, int]  # images that could not be decoded or encoded, by reason
    seconds: Mapping[str, float]  # of an image, by stage
    tokens_per_byte: float  # visual tokens by bytes of prepared pixels
    widths: Mapping[str, int]  # of the members of a payload
    decisions: Decisions
    packed: Mapping[str, float]  # by dtype: bytes of features in Parquet by their own bytes


def measure(samples: Sequence[Sample], settings: EncodeSettings, dtypes: Sequence[str]) -> Measured:
    """Run a few batches of these samples' images through the stages.

    Args:
        samples: some of the corpus.
        settings: of the model actor.
        dtypes: in which features may be stored in Parquet; none where they are not.

    Raises:
        UserError: the model can't be used here, or none of the images can.
    """
    rows = owners_among(samples, BATCHES * settings.batch_size)
    if not rows:
        raise UserError(
            f"--plan: no sample it looked at has an image whose header can be read{_reasons(samples)}; mend the corpus "
            "first"
        )
    actor = EncodeShards(replace(settings, keep_features=True))
    if actor.refused is not None:
        raise UserError(actor.refused)
    decoded = decode_samples(table_of(IndexRow, rows), settings.model)
    try:
        first = decoded.slice(0, settings.batch_size)
        at_fitting_batch(settings.batch_size, lambda size: actor.encode_shard(first, size))
        encoded = at_fitting_batch(settings.batch_size, lambda size: actor.encode_shard(decoded, size))
    except NoBatchFitsError as error:
        raise UserError(f"--plan: {error}") from error
    places = [place for place, found in enumerate(encoded["selection"].is_valid().to_pylist()) if found]
    reasons = Counter(reason for reason in encoded["reason"].to_pylist() if reason is not None)
    if not places:
        why = f" ({', '.join(reasons)})" if reasons else ""
        raise UserError(f"--plan: none of the {len(rows)} images it looked at can be used{why}; mend the corpus first")
    selections, features = nested_table(encoded["selection"], places), nested_table(encoded["features"], places)
    read, encode = facts_among(ReadFacts, encoded), facts_among(EncodeFacts, encoded)
    return Measured(
        device=encode.device,
        batch_size=encode.batch_size,
        images=len(places),
        failed=dict(reasons),
        seconds={
            "read": read.read_seconds / len(rows),
            "decode": read.decode_seconds / len(rows),
            "encode": encode.encode_seconds / len(places),
            "score": encode.score_seconds / len(places),
            "select": encode.select_seconds / len(places),
            "write": _write_seconds(selections, features, packs=bool(dtypes)) / len(places),
        },
        tokens_per_byte=_total(selections, "num_tokens") / _prepared_bytes(selections, settings.model),
        widths={name: rows.shape[1] for name, rows in unpack_features(features["features"][0].as_py()).items()},
        decisions=_decisions(selections),
        packed={dtype: _packed(features.slice(0, PACKED), dtype) for dtype in dtypes},
    )


def owners_among(samples: Sequence[Sample], count: int) -> list[IndexRow]:
    """Up to `count` distinct images of the samples whose header can be read: a fair sample, the same every time."""
    found = {sample.image_id: sample for sample in reversed(samples) if _is_usable(sample)}
    chosen = sorted((image_id, sample) for image_id, sample in found.items() if image_id is not None)[:count]
    return [index_row(sample, slot) for slot, (_, sample) in enumerate(chosen)]


def _reasons(samples: Sequence[Sample]) -> str:
    """Why samples can't be used: each reason with its number and one message."""
    found = Counter(sample.reason or "unreadable_image" for sample in samples)
    messages = {sample.reason: sample.message for sample in reversed(samples) if sample.reason is not None}
    told = [
        f"{count:,} {reason}" + (f", as {messages[reason]}" if reason in messages else "")
        for reason, count in found.most_common()
    ]
    return f" ({'; '.join(told)})" if told else ""


def _is_usable(sample: Sample) -> bool:
    return sample.reason is None and sample.width is not None


def index_row(sample: Sample, slot: int | None) -> IndexRow:
    """The row of the index of a sample, as if all lay in one shard."""
    shared = {field.name for field in fields(Sample)} & {field.name for field in fields(IndexRow)}
    found: dict[str, Any] = {name: getattr(sample, name) for name in shared}
    return IndexRow(**found, shard=0, slot=slot, image_shard=0)


def _write_seconds(selections: pa.Table, features: pa.Table, *, packs: bool) -> float:
    """The processor time of making the files, without that of the storage."""
    began = time.perf_counter()
    table_size(selections)
    if packs:
        table_size(features)
    else:
        member_sizes(selections)
    for payload in features["features"]:
        hashlib.sha256(payload.as_buffer())
    return time.perf_counter() - began


def _decisions(selections: pa.Table) -> Decisions:
    """The sizes of decisions, and what a further token adds to them: by those of half of the kept tokens."""
    rows = rows_of(SelectionRow, selections)
    fewer = table_of(SelectionRow, [_with_half(row) for row in rows])
    kept, kept_fewer = _total(selections, "num_kept") / len(rows), _total(fewer, "num_kept") / len(rows)
    member, member_fewer = (sum(member_sizes(table)) / len(rows) for table in (selections, fewer))
    selection, step = Size.of(selections), kept - kept_fewer
    return Decisions(
        kept=kept,
        selection=selection,
        selection_token=(selection.each - Size.of(fewer).each) / step if step else 0.0,
        member=member,
        member_token=(member - member_fewer) / step if step else 0.0,
    )


def _with_half(row: SelectionRow) -> SelectionRow:
    """The decision at half of its budget: the ranking is ordered, so that is its beginning."""
    kept = max(1, row.num_kept // 2)
    return replace(
        row,
        num_kept=kept,
        ranking=row.ranking[:kept],
        gain=row.gain[:kept],
        position=row.position[:kept],
        last_gain=row.gain[kept - 1],
    )


def _packed(features: pa.Table, dtype: str) -> float:
    """What Parquet makes of a byte of features in this dtype."""
    rows = []
    for row in rows_among(FeatureRow, features):
        try:
            rows.append(replace(row, dtype=dtype, features=pack_features(unpack_features(row.features), dtype)))
        except OverflowError:  # of an image that this dtype could not be chosen for
            continue
    own = sum(len(row.features) for row in rows)
    return Size.of(table_of(FeatureRow, rows)).each * len(rows) / own if rows else 1.0


def _prepared_bytes(selections: pa.Table, model: str) -> int:
    prepared = preparer_of(model).prepared_bytes
    widths, heights = (selections[axis].to_pylist() for axis in ("width", "height"))
    return sum(prepared(width, height) for width, height in zip(widths, heights, strict=True))


def _total(table: pa.Table, name: str) -> int:
    return sum(table[name].to_pylist())
