"""The index: which image lies in which shard, and where every sample of the corpus was found.

    _index/part-00000000.parquet   64 shards a file, one row group a shard, rows of `schemas.tables.INDEX`
    _index/index.json              written last: no index.json, no index

Inputs added to a corpus later form a new generation: new shards, the old ones stay as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.resolve import CorpusInput
from pipeline.corpus.sample import PROMPTS_FORM
from pipeline.errors import UserError
from pipeline.storage.files import new_file, replace_file
from schemas.records import to_json
from schemas.tables import INDEX


@dataclass(frozen=True)
class Generation:
    """What one indexing run added."""

    corpus_root: str  # folder that the inputs' names are relative to; the same in every generation
    inputs: list[dict[str, Any]]  # path, kind, size_bytes of the input files, in order; "unread": why it was left out
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

    def prompts_note(self) -> str | None:
        """One line about samples without prompts, or None where nothing is odd about them."""
        odd = any(key != "prompts" for key in self.keys_seen)  # with the key, somebody meant to ask nothing
        if not self.without_prompts or (self.num_prompts and not odd):
            return None
        seen = ", ".join(f"{key} ({count:,})" for key, count in self.keys_seen.items()) or "nothing but images"
        return (
            f"{self.without_prompts:,} of {self.num_samples:,} samples have no prompts; in their place: {seen}; "
            f"prompts are read from a sample's JSON record alone, in the form {PROMPTS_FORM}"
        )


@dataclass(frozen=True)
class Index:
    """The index of an artifact, as recorded in `_index/index.json`."""

    root: Path  # the _index folder
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
            found.pop(item["path"], None)
            if "unread" in item:
                found[item["path"]] = item["unread"]
        return found

    def files(self) -> list[Path]:
        return [
            part_path(self.root, n) for g in self.generations for n in range(g.first_file, g.first_file + g.num_files)
        ]

    def part_of(self, shard: int) -> tuple[Path, int]:
        """The file that holds a shard's rows, and the row group in it."""
        for g in self.generations:
            if g.first_shard <= shard < g.first_shard + g.num_shards:
                file, group = divmod(shard - g.first_shard, g.shards_per_file)
                return part_path(self.root, g.first_file + file), group
        raise ValueError(f"shard {shard} is not in the index, which has {self.num_shards} shards")

    def read_shard(self, shard: int) -> pa.Table:
        """Rows of `schemas.tables.INDEX` of one shard, ordered by input position."""
        path, group = self.part_of(shard)
        return pq.ParquetFile(path).read_row_group(group)


def part_path(root: Path, number: int) -> Path:
    return root / f"part-{number:08d}.parquet"


def read_index(root: Path) -> Index | None:
    """The index recorded under `root`, or None when there is none yet.

    Raises:
        UserError: it is damaged, or of another version.
    """
    path = root / "index.json"
    try:
        return Index(root, [Generation(**g) for g in json.loads(path.read_bytes())["generations"]])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} was truncated, altered or written by another version ({error}); choose another --output"
        ) from error


def unindexed_inputs(index: Index | None, inputs: Sequence[CorpusInput], root: Path) -> list[CorpusInput]:
    """The inputs the index does not cover yet.

    Raises:
        UserError: an indexed input is gone from the corpus or has changed in size.
    """
    if index is None:
        return list(inputs)
    known = {item["path"]: item for g in index.generations for item in g.inputs if "unread" not in item}
    asked = {item.path: item for item in inputs}
    for path, item in known.items():
        if path not in asked:
            raise UserError(
                f"{root} was indexed from {path}, which --corpus no longer names; "
                "a corpus can grow but not shrink: name it again, or choose another --output"
            )
        if asked[path].size_bytes != item["size_bytes"]:
            raise UserError(
                f"{path} has {asked[path].size_bytes} bytes but had {item['size_bytes']} when it was indexed; "
                "inputs must not change: put new samples into a new file, or choose another --output"
            )
    return [item for item in inputs if item.path not in known]


def write_index(index: Index) -> None:
    """Make the index's parts count: write `index.json`."""
    replace_file(index.root / "index.json", to_json({"generations": [asdict(g) for g in index.generations]}))


def drop_generation(index: Index) -> None:
    """Take the newest generation back, as if its inputs had never been indexed."""
    *older, newest = index.generations
    if older:
        write_index(Index(index.root, older))
    else:
        (index.root / "index.json").unlink()
    for number in range(newest.first_file, newest.first_file + newest.num_files):
        part_path(index.root, number).unlink()


def write_part(path: Path, shards: Sequence[pa.Table]) -> None:
    """Write a file of the index, one row group a shard, so that a shard is read without its neighbours."""
    with new_file(path) as temporary, pq.ParquetWriter(temporary, INDEX, compression="zstd") as writer:
        for rows in shards:
            writer.write_table(rows, row_group_size=max(1, len(rows)))
