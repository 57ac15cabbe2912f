"""Who rides in which shard: DuckDB and Arrow against a plain loop, on random corpora, with any number of threads."""

import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.artifact.index import Generation
from pipeline.index import parts
from pipeline.index.assign import assign_shards, shard_starts
from pipeline.storage import LocalStore
from schemas.columns import table_of
from schemas.samples import Message, Prompt, Sample

SHARD_SIZE, SHARDS_PER_FILE = 4, 3


def made_up(seed: int, generation: int) -> list[list[Sample]]:
    """Units of samples that repeat images and prompt ids, fail, and hold odd prompts."""
    chance = random.Random(f"{seed} {generation}")

    def prompt(number: int, place: int) -> Prompt:
        repeated = f"q{chance.randrange(80)}"
        return Prompt(
            prompt_id=repeated if seed % 2 else f"{generation} {number} {place}",
            prompt="what ?",
            references=["a", "b"][: chance.randrange(3)],
            status=chance.choice(["ok", "ok", "bad_prompt"]),
            messages=chance.choice([None, [Message(role="user", text="what ?")]]),
        )

    def sample(unit: int, number: int) -> Sample:
        failed = chance.random() < 0.1
        return Sample(
            input=10 * generation + unit,
            sample=512 * number,
            source=f"s{generation}-{unit}-{number}",
            path="p",
            image_id=None if failed else f"{chance.randrange(60):064x}",
            reason="missing_file" if failed else None,
            message="m" if failed else None,
            keys=["k"],
            prompts=[prompt(100 * unit + number, place) for place in range(chance.randrange(3))],
        )

    return [[sample(unit, number) for number in range(chance.choice([0, 1, 40, 40]))] for unit in range(4)]


def in_a_loop(generations: list[list[Sample]]) -> list[dict[str, Any]]:
    """The rows of the index, in its order."""
    owners: dict[str, tuple[int, int]] = {}  # image -> shard, slot
    ids: set[str] = set()
    rows: list[dict[str, Any]] = []
    first = 0
    for samples in generations:
        shard, filled, placed = first, 0, []
        for sample in samples:
            row = asdict(sample) | {"slot": None}
            image = sample.image_id if sample.reason is None else None
            if image is not None and image not in owners:
                if filled == SHARD_SIZE:
                    shard, filled = shard + 1, 0
                owners[image] = shard, filled
                row["slot"] = filled
                filled += 1
            row["image_shard"] = owners[image][0] if image is not None else None
            of_old = row["image_shard"] is None or row["image_shard"] < first
            row["shard"] = shard if of_old else row["image_shard"]
            placed.append(row)
        posed = [(s.reason is None and p.status == "ok", n, place, p.prompt_id) for n, s in enumerate(samples)
                 for place, p in enumerate(s.prompts)]  # fmt: skip
        for _, number, place, one in sorted(posed, key=lambda each: (not each[0], *each[1:3])):
            prompt = placed[number]["prompts"][place]
            if one in ids:
                told = f"its id '{one}' is that of another prompt"
                prompt["message"] = f"{prompt['message']}; {told}" if prompt["message"] else told
                prompt["status"] = "duplicate_prompt_id" if prompt["status"] == "ok" else prompt["status"]
                prompt["prompt_id"] = f"{samples[number].source}#{place}"
            ids.add(one)
        rows += sorted(placed, key=lambda row: row["shard"])
        first = shard + 1
    return [
        {key: value for key, value in row.items() if key not in ("keys", "named", "width", "height")} for row in rows
    ]


def starts_in_a_loop(sizes: list[int], shard_size: int, most: int) -> list[int]:
    starts, count, total = [], 0, 0
    for rank, size in enumerate(sizes):
        if not count or count == shard_size or total + size > most > 0:
            starts.append(rank)
            count = total = 0
        count, total = count + 1, total + size
    return starts


@pytest.mark.parametrize("most", [0, 1, 10, 25])
@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_shards_are_cut_as_in_a_loop(most, shard_size):
    for seed in range(50):
        chance = random.Random(seed)
        sizes = [chance.choice([0, 0, 1, 4, 9, 10, 30]) for _ in range(chance.randrange(60))]
        cut = chance.randrange(len(sizes) + 1)
        batches = [np.array(part, np.int64) for part in (sizes[:cut], [], sizes[cut:])]
        assert list(shard_starts(batches, shard_size, most)) == starts_in_a_loop(sizes, shard_size, most)


@pytest.fixture(params=[1 << 16, 7])
def batches(request, monkeypatch) -> None:
    """In one piece, and in many."""
    monkeypatch.setattr(parts, "BATCH_ROWS", request.param)


def assigned(root: Path, seed: int, threads: int, limit: int | None) -> tuple[list[dict[str, Any]], list[bytes], Any]:
    store, done = LocalStore(root), list[Generation]()
    for generation in range(1 if limit else 2):
        units = []
        for number, samples in enumerate(made_up(seed, generation)):
            units.append(f"scan-{generation}/unit-{number:08d}.parquet")
            with store.new_file(units[-1]) as new:
                pq.write_table(table_of(Sample, samples), new.path)
        begin = Generation.of_nothing(
            "/",
            [],
            first_input=10 * generation,
            first_shard=sum(one.num_shards for one in done),
            first_file=sum(one.num_files for one in done),
            shards_per_file=SHARDS_PER_FILE,
        )
        parts = [part for one in done for part in one.parts]
        settings = {"shard_size": SHARD_SIZE, "limit": limit, "bound": None, "threads": threads}
        done.append(assign_shards(store, units, parts, begin, **settings))
    parts = [part for one in done for part in one.parts]
    rows = [row for part in parts for row in pq.read_table(store.locate(part)).to_pylist()]
    return rows, [store.read(part) for part in parts], done[0]


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 6))])
@pytest.mark.parametrize("limit", [None, 30])
def test_as_a_loop_would_do_it_with_any_number_of_threads(batches, tmp_path, seed, limit):
    generations = [[sample for unit in made_up(seed, number) for sample in unit] for number in range(2)]
    expected = in_a_loop([generations[0][:limit]] if limit else generations)
    rows, data, first = assigned(tmp_path / "one", seed, 1, limit)
    assert sorted(rows[0]) == sorted(expected[0])
    assert rows == expected
    assert assigned(tmp_path / "three", seed, 3, limit)[:2] == (rows, data)
    own = [row for row in rows if row["input"] < 10]
    posed = Counter(p["status"] for row in own if row["reason"] is None for p in row["prompts"])
    assert first.failed_prompts == {status: count for status, count in posed.items() if status != "ok"}
    assert first.num_samples == len(own)
    assert first.num_images == sum(row["slot"] is not None for row in own)
    assert first.num_prompts == sum(len(row["prompts"]) for row in own)
    assert first.without_prompts == sum(row["reason"] is None and not row["prompts"] for row in own)
