"""How often ways of bounding a loss call a budget safe whose true loss is exactly the tolerance: simulated samples.

    python benchmarks/safe_bounds.py                       the table; writes benchmarks/results/safe_bounds.json

Each case is a corpus: images with their numbers of prompts, and how the prompts of an image are lost. A sample is
called safe where its upper bound at 95 % is not over the tolerance. Nominal: at most 5 %. `bound` is what
`zoo-prune choose` decides by.
"""

# ruff: noqa: E402

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(REPO)

import argparse
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.tables import print_table
from pipeline.choosing.resampling import draws, interval, resampled, upper_bounds

Floats = NDArray[np.float64]
Make = Callable[[np.random.Generator, int, float, int], tuple[Floats, Floats]]

SAMPLES = 500
RESAMPLES = 2000


def one_prompt(rng: np.random.Generator, images: int, loss: float, samples: int) -> tuple[Floats, Floats]:
    """Each image has one prompt, which is lost or not."""
    return (rng.random((samples, images)) < loss).astype(float), np.ones(images)


def all_or_none(rng: np.random.Generator, images: int, loss: float, samples: int) -> tuple[Floats, Floats]:
    """Each image has four prompts, which are lost together."""
    return 4.0 * (rng.random((samples, images)) < loss), np.full(images, 4.0)


def correlated(rng: np.random.Generator, images: int, loss: float, samples: int) -> tuple[Floats, Floats]:
    """One to eight prompts an image; right ones are lost, and wrong ones won, nearly together."""
    asked_I = rng.integers(1, 9, images)
    won, strength = 0.02, 0.2  # of a beta distribution: the correlation within an image is 1 / (1 + strength)
    lost_RI = rng.beta(strength * (loss + won), strength * (1 - loss - won), (samples, images))
    won_RI = rng.beta(strength * won, strength * (1 - won), (samples, images))
    return (rng.binomial(asked_I, lost_RI) - rng.binomial(asked_I, won_RI)).astype(float), asked_I.astype(float)


def large_images(rng: np.random.Generator, images: int, loss: float, samples: int) -> tuple[Floats, Floats]:
    """Every fifth image has ten prompts, the others two; only the large ones lose any, and then all."""
    asked_I = np.where(np.arange(images) % 5 == 0, 10.0, 2.0)
    is_large_I = asked_I > 2
    chance = loss * asked_I.sum() / asked_I[is_large_I].sum()
    return asked_I * (is_large_I & (rng.random((samples, images)) < chance)), asked_I


@dataclass(frozen=True)
class Case:
    """A corpus, and how many of its images are sampled."""

    make: Make
    images: int
    tolerance: float

    def samples(self) -> tuple[Floats, Floats]:
        """The sums of losses of each sample's images, and the images' prompts; the same every time."""
        return self.make(np.random.default_rng(self.images), self.images, self.tolerance, SAMPLES)


CASES = [
    *[
        Case(make, n, 0.02 if n > 30 else 0.05)
        for make in (one_prompt, all_or_none, correlated)
        for n in (30, 100, 500)
    ],
    *[Case(large_images, n, 0.02) for n in (100, 500)],
]


def percentile(sums_RI: Floats, asked_I: Floats) -> Floats:
    """Upper end of the percentile interval."""
    _, high_R = interval(resampled(sums_RI, asked_I, resamples=RESAMPLES), level=0.9)
    return high_R


def studentised(sums_RI: Floats, asked_I: Floats) -> Floats:
    """Upper end of the bootstrap-t interval, with the error of a ratio by linearisation."""
    drawn_BI = draws(len(asked_I), RESAMPLES).astype(np.float64)
    loss_R = sums_RI.sum(1) / asked_I.sum()
    error_R = np.sqrt(np.square(sums_RI - loss_R[:, None] * asked_I).sum(1)) / asked_I.sum()
    asked_B = drawn_BI @ asked_I
    loss_RB = sums_RI @ drawn_BI.T / asked_B
    squares_RB = np.square(sums_RI) @ drawn_BI.T - 2 * loss_RB * ((sums_RI * asked_I) @ drawn_BI.T)
    squares_RB += np.square(loss_RB) * (drawn_BI @ np.square(asked_I))
    error_RB = np.sqrt(np.maximum(squares_RB, 0)) / asked_B
    with np.errstate(divide="ignore", invalid="ignore"):
        t_RB = np.nan_to_num((loss_RB - loss_R[:, None]) / error_RB, nan=0.0, posinf=0.0, neginf=0.0)
    return loss_R - np.quantile(t_RB, 0.05, axis=1) * error_R


def bound(sums_RI: Floats, asked_I: Floats) -> Floats:
    """What `zoo-prune choose` decides by."""
    return upper_bounds(sums_RI, asked_I, resamples=RESAMPLES)


def wrongly_safe(case: Case, method: Callable[[Floats, Floats], Floats]) -> float:
    """The share of samples that are called safe."""
    return float((method(*case.samples()) <= case.tolerance).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", default=str(REPO / "benchmarks" / "results" / "safe_bounds.json"))
    given = parser.parse_args()
    rows = [
        {
            "images": case.images,
            "prompts": str(case.make.__doc__).rstrip("."),
            "tolerance, points": 100 * case.tolerance,
            **{
                f"{method.__name__}, %": round(100 * wrongly_safe(case, method), 1)
                for method in (percentile, studentised, bound)
            },
        }
        for case in CASES
    ]
    result = {
        "command": shlex.join(["python", "benchmarks/safe_bounds.py", *sys.argv[1:]]),
        "samples": SAMPLES,
        "resamples": RESAMPLES,
        "numpy": np.__version__,
        "rows": rows,
    }
    path = Path(given.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print_table(pa.Table.from_pylist(rows), "samples called safe whose true loss is the tolerance")


if __name__ == "__main__":
    main()
