"""How shards keep many GPUs busy: a simulation of the schedule, with slow shards, dying workers and restarting actors.

    python benchmarks/shard_schedule.py     1 billion images on 64 GPUs, benchmarks/results/shard_schedule.json
    python benchmarks/shard_schedule.py --images 1e8 --gpus 16 --output -

A worker takes the next shard as soon as it is free. A shard's time is its images over the worker's rate, spread a
little (lognormal), some of them many times slower. A worker dies at random; its shard begins anew when it is back. The
job feeds Ray a stream of so many shards at a time and waits for its last one, and every stream starts its actors anew
(`pipeline/prune/stages.py`). First of all the simulation is checked against the closed form of a run without trouble.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, which holds a file by the name of a standard module (selectors).
sys.path[0] = str(ROOT)

import argparse
import heapq
import json
import math
import random
import shlex
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Plant:
    """What the shards run on and what goes wrong."""

    workers: int = 64
    images_per_sec: float = 400.0  # of one worker
    spread: float = 0.05  # standard deviation of the logarithm of a shard's time
    straggler_share: float = 0.001  # shards that are slow,
    straggler_factor: float = 5.0  # by this factor
    mean_life_sec: float = 2 * 86_400.0  # of a worker, until it dies
    restart_sec: float = 60.0  # until a dead worker is back with its model loaded
    start_sec: float = 60.0  # of a stream, until its actors have loaded the model
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    hours: float
    efficiency: float  # ideal time over this time
    lost_to_starts: float  # shares of the GPU time
    lost_to_waiting: float  # for the last shards of each stream
    lost_to_deaths: float
    deaths: int
    shards: int
    streams: int


def simulate(images: float, shard_size: int, shards_a_stream: int, plant: Plant) -> Outcome:
    """Run every shard once."""
    generator = random.Random(plant.seed)
    shards = math.ceil(images / shard_size)
    clock = waiting = dead = 0.0
    deaths = done = streams = 0

    def life() -> float:
        return -plant.mean_life_sec * math.log(1 - generator.random())

    death_at = [life() for _ in range(plant.workers)]
    for begin in range(0, shards, shards_a_stream):
        streams += 1
        clock += plant.start_sec
        free = [(clock, worker) for worker in range(plant.workers)]
        for _ in range(begin, min(begin + shards_a_stream, shards)):
            now, worker = heapq.heappop(free)
            seconds = shard_size / plant.images_per_sec
            if plant.spread:
                seconds *= generator.lognormvariate(-(plant.spread**2) / 2, plant.spread)
            if generator.random() < plant.straggler_share:
                seconds *= plant.straggler_factor
            while death_at[worker] < now + seconds:
                death = max(death_at[worker], now)  # one that was due while the worker idled comes now
                dead += death - now + plant.restart_sec
                now = death + plant.restart_sec
                deaths += 1
                death_at[worker] = now + life()
            heapq.heappush(free, (now + seconds, worker))
            done += 1
        clock_end = max(at for at, _ in free)
        waiting += sum(clock_end - at for at, _ in free)
        clock = clock_end
    assert done == shards
    gpu_seconds = clock * plant.workers
    return Outcome(
        hours=clock / 3600,
        efficiency=images / (plant.workers * plant.images_per_sec) / clock,
        lost_to_starts=streams * plant.start_sec * plant.workers / gpu_seconds,
        lost_to_waiting=waiting / gpu_seconds,
        lost_to_deaths=dead / gpu_seconds,
        deaths=deaths,
        shards=shards,
        streams=streams,
    )


def check_against_closed_form() -> None:
    """Without trouble a stream of s shards on w workers takes its start and ceil(s / w) shard times."""
    calm = Plant(workers=7, spread=0.0, straggler_share=0.0, mean_life_sec=math.inf)
    for images, size, stream in ((70_000, 100, 10**9), (70_001, 100, 10**9), (70_000, 100, 50), (1_000, 300, 2)):
        shards = math.ceil(images / size)
        sizes = [min(stream, shards - begin) for begin in range(0, shards, stream)]
        seconds = sum(calm.start_sec + math.ceil(s / calm.workers) * size / calm.images_per_sec for s in sizes)
        assert math.isclose(simulate(images, size, stream, calm).hours, seconds / 3600), (images, size, stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=float, default=1e9)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--rate", type=float, default=400.0, help="images a second and GPU (default 400)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/shard_schedule.json"), help="- for none")
    given = parser.parse_args()
    check_against_closed_form()
    usual = Plant(workers=given.gpus, images_per_sec=given.rate)
    bad_day = replace(usual, straggler_share=0.01, straggler_factor=20.0, mean_life_sec=6 * 3600.0)
    rows: list[dict[str, Any]] = []
    print("plant       shard     stream   hours efficiency  starts  waiting  deaths")
    for name, plant in (("usual", usual), ("bad day", bad_day)):
        for shard_size in (512, 2048, 8192, 32_768, 131_072):
            for title, stream in (
                ("1000", 1000),
                ("250 a GPU", 250 * plant.workers),
                ("all", 10**12),
            ):
                outcome = simulate(given.images, shard_size, stream, plant)
                rows.append({"plant": name, "shard_size": shard_size, "shards_a_stream": title, **asdict(outcome)})
                print(
                    f"{name:8} {shard_size:8,} {title:>10} {outcome.hours:7.2f} {outcome.efficiency:10.3f} "
                    f"{outcome.lost_to_starts:7.3f} {outcome.lost_to_waiting:8.3f} {outcome.lost_to_deaths:7.4f}",
                    flush=True,
                )
    if given.output != "-":
        report = {
            "command": shlex.join(["python", *sys.argv]),
            "images": given.images,
            "plants": {"usual": asdict(usual), "bad day": asdict(bad_day)},
            "runs": rows,
        }
        Path(given.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
