"""The index: which image lies in which shard, and where every sample of the corpus was found.

    _index/part-00000000.parquet   64 shards a file, one row group a shard, rows of `schemas.samples.IndexRow`
    _index/index.json              written last: no index.json, no index

Inputs added to a corpus later form a new generation: new shards, the old ones stay as they are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.fetch import Place
from pipeline.corpus.resolve import CorpusInput
from pipeline.corpus.sample import PROMPTS_FORM
from pipeline.errors import UserError
from pipeline.storage import Store
from schemas.records import to_json
from schemas.tables import INDEX
from schemas.wording import counted

FOLDER = "_index/"
MAX_KEYS_SHOWN = 6
INDEX_RECORD = f"{FOLDER}index.json"


@dataclass(frozen=True)
class IndexedInput:
    """An input file as an indexing run found it."""

    path: str
    kind: str
    size_bytes: int
    unread: str | None = None  # why it was left out; None: it was indexed

    def to_json(self) -> dict[str, Any]:
        """The form in `index.json`: `unread` stands there only where the input was left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Generation:
    """What one indexing run added."""

    corpus_root: str  # folder that the inputs' names are relative to; the same in every generation
    inputs: list[IndexedInput]  # in the order of the corpus
    first_input: int
    first_shard: int
    num_shards: int
    first_file: int
    num_files: int
    shards_per_file: int
    num_samples: int
    num_images: int
    num_prompts: int
    failed_samples: dict[str, int]  # that could not be indexed, per reason
    unread_bytes: int  # of tars that break off or go on behind their end mark
    failed_prompts: dict[str, int]  # of the other samples, per reason
    without_prompts: int  # of the other samples
    keys_seen: dict[str, int]  # most common keys of those, and extensions of their members, with their number
    num_records: int  # samples with a record in which prompts are looked for
    named_seen: dict[str, int]  # of those, with each column that the user names for prompts

    @classmethod
    def of_nothing(
        cls,
        corpus_root: str,
        inputs: list[IndexedInput],
        *,
        first_input: int,
        first_shard: int,
        first_file: int,
        shards_per_file: int,
    ) -> "Generation":
        """A generation without samples: where one begins, and what is left of one whose inputs were all left out."""
        return cls(
            corpus_root=corpus_root,
            inputs=inputs,
            first_input=first_input,
            first_shard=first_shard,
            num_shards=0,
            first_file=first_file,
            num_files=0,
            shards_per_file=shards_per_file,
            num_samples=0,
            num_images=0,
            num_prompts=0,
            failed_samples={},
            unread_bytes=0,
            failed_prompts={},
            without_prompts=0,
            keys_seen={},
            num_records=0,
            named_seen={},
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Generation":
        """Raises TypeError or KeyError where a field is missing or not known."""
        return cls(**{**data, "inputs": [IndexedInput(**item) for item in data["inputs"]]})

    def to_json(self) -> dict[str, Any]:
        """The form in `index.json`."""
        return {**asdict(self), "inputs": [item.to_json() for item in self.inputs]}

    @property
    def parts(self) -> list[str]:
        """The keys of its files, in order."""
        return [part_key(number) for number in range(self.first_file, self.first_file + self.num_files)]

    def prompts_note(self) -> str | None:
        """One line about samples without prompts, or None where nothing is odd about them."""
        odd = any(key != "prompts" for key in self.keys_seen)  # with the key, somebody meant to ask nothing
        if not self.without_prompts or (self.num_prompts and not odd):
            return None
        keys = [f"{key} ({count:,})" for key, count in self.keys_seen.items()]
        seen = ", ".join(keys[:MAX_KEYS_SHOWN]) or "nothing but images"
        if len(keys) > MAX_KEYS_SHOWN:
            seen += " and others"
        return (
            f"{self.without_prompts:,} of {counted(self.num_samples, 'samples', 'have')} no prompts; "
            f"in their place: {seen}; "
            f"prompts are read from a record in the form {PROMPTS_FORM}, from --prompt-column, or from --prompt"
        )


@dataclass(frozen=True)
class Index:
    """The index of an artifact, as recorded in `_index/index.json`."""

    store: Store = field(compare=False)  # of the artifact
    generations: list[Generation]

    @property
    def num_shards(self) -> int:
        return sum(g.num_shards for g in self.generations)

    @property
    def num_images(self) -> int:
        return sum(g.num_images for g in self.generations)

    @property
    def num_prompts(self) -> int:
        return sum(g.num_prompts for g in self.generations)

    @property
    def num_samples(self) -> int:
        return sum(g.num_samples for g in self.generations)

    @property
    def left_out(self) -> dict[str, str]:
        """Input files that no generation holds because the storage did not give their bytes, and why."""
        found: dict[str, str] = {}
        for item in (item for g in self.generations for item in g.inputs):
            found.pop(item.path, None)
            if item.unread is not None:
                found[item.path] = item.unread
        return found

    def parts(self) -> list[str]:
        """The keys of all files, in order."""
        return [key for g in self.generations for key in g.parts]

    def part_of(self, shard: int) -> tuple[str, int]:
        """The key of the file that holds a shard's rows, and the row group in it."""
        for g in self.generations:
            if g.first_shard <= shard < g.first_shard + g.num_shards:
                file, group = divmod(shard - g.first_shard, g.shards_per_file)
                return part_key(g.first_file + file), group
        raise ValueError(f"shard {shard} is not in the index, which has {self.num_shards} shards")

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One shard as a table of `schemas.samples.IndexRow`, or of some of its columns, ordered by input position."""
        key, group = self.part_of(shard)
        with self.store.open(key) as stream:
            return pq.ParquetFile(stream).read_row_group(group, columns=columns)

    def places(self, shards: Mapping[str, int]) -> dict[str, Place]:
        """Where the encoded bytes of images lie, by their ids; an image that the index does not have is left out.

        Args:
            shards: the shard of each image, by its id.
        """
        found: dict[str, Place] = {}
        columns = ["image_id", "slot", "path", "offset", "size", "within"]
        for shard in sorted(set(shards.values())):
            for row in self.read_shard(shard, columns).to_pylist():
                if row["slot"] is not None and shards.get(row["image_id"]) == shard:
                    found[row["image_id"]] = Place(row["path"], row["offset"], row["size"], row["within"])
        return found


def part_key(number: int) -> str:
    """The key of a file of the index in the artifact's store."""
    return f"{FOLDER}part-{number:08d}.parquet"


def read_index(store: Store) -> Index | None:
    """The index recorded in the store of an artifact, or None when there is none yet.

    Raises:
        UserError: it is damaged, or of another version.
    """
    try:
        data = json.loads(store.read(INDEX_RECORD))
        return Index(store, [Generation.from_json(g) for g in data["generations"]])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{store.locate(INDEX_RECORD)} was truncated, altered or written by another version ({error}); "
            f"if that was not another version, remove {store.locate(FOLDER)} and prune again: it is made anew of the "
            "same corpus, and the shards stay"
        ) from error


def unindexed_inputs(index: Index | None, inputs: Sequence[CorpusInput]) -> list[CorpusInput]:
    """The inputs the index does not cover yet; all of them where there is no index.

    Raises:
        UserError: an indexed input is gone from the corpus or has changed in size.
    """
    if index is None:
        return list(inputs)
    known = {item.path: item for g in index.generations for item in g.inputs if item.unread is None}
    asked = {item.path: item for item in inputs}
    for path, item in known.items():
        if path not in asked:
            raise UserError(
                f"{index.store.locate()} was indexed from {path}, which --corpus no longer names; "
                "a corpus can grow but not shrink: name it again, or choose another --output"
            )
        if asked[path].size_bytes != item.size_bytes:
            raise UserError(
                f"{path} has {asked[path].size_bytes} bytes but had {item.size_bytes} when it was indexed; "
                f"inputs must not change: put new samples into a new {_holder(item.kind)}, or choose another --output"
            )
    return [item for item in inputs if item.path not in known]


def _holder(kind: str) -> str:
    return "folder" if kind == "folder" else "file"


def write_index(index: Index) -> None:
    """Make the index's parts count: write `index.json`."""
    index.store.put(INDEX_RECORD, to_json({"generations": [g.to_json() for g in index.generations]}))


def drop_generation(index: Index) -> None:
    """Take the newest generation back, as if its inputs had never been indexed."""
    *older, newest = index.generations
    if older:
        write_index(Index(index.store, older))
    else:
        index.store.delete(INDEX_RECORD)
    for key in newest.parts:
        index.store.delete(key)


def write_part(store: Store, key: str, shards: Sequence[pa.Table]) -> None:
    """Write a file of the index, one row group a shard, so that a shard is read without its neighbours."""
    with store.new_file(key) as new, pq.ParquetWriter(new.path, INDEX, compression="zstd") as writer:
        for rows in shards:
            writer.write_table(rows.select(INDEX.names), row_group_size=max(1, len(rows)))
