"""What scores come to, with bootstrap intervals over images.

Prompts about one image are not independent, so images are resampled, each with all of its prompts. Of each image only
the number of its answers and the sums of their scores and counts are kept. Beyond `MAX_GROUPS` images they are put into
as many groups, by their ids, and groups are resampled: memory and time no longer grow, and random groups of images
differ from each other as much as their images make them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.grading.metrics.metric import Measure

MAX_GROUPS = 4096
RESAMPLES = 2000
LEVEL = 0.95
_AT_A_TIME = 200  # resamples

Floats = NDArray[np.float64]


@dataclass
class ImageSums:
    """The answers about each image: their number, and the sums of their scores and counts."""

    of: dict[int | str, list[float]] = field(default_factory=dict)
    in_groups: bool = False

    def add(self, image_id: str, score: float, counts: Sequence[int]) -> None:
        """Take up one answer about an image."""
        self._add(_group(image_id) if self.in_groups else image_id, [1.0, score, *counts])
        if len(self.of) > MAX_GROUPS and not self.in_groups:
            self.in_groups, before, self.of = True, self.of, {}
            for image, sums in before.items():
                self._add(_group(str(image)), sums)

    def _add(self, key: int | str, more: list[float]) -> None:
        sums = self.of.get(key)
        self.of[key] = more if sums is None else [one + other for one, other in zip(sums, more, strict=True)]

    def array(self) -> Floats:
        """A row an image or group, in the order of their ids."""
        return np.array([self.of[key] for key in sorted(self.of)], np.float64)


def _group(image_id: str) -> int:
    return int(image_id[-8:], 16) % MAX_GROUPS


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, which a single image does not have."""

    value: float
    low: float | None
    high: float | None


def estimates(sums_IS: Floats, measures: Mapping[str, Measure], *, seed: int = 0) -> dict[str, Estimate]:
    """The measures over all images, with percentile intervals.

    Args:
        sums_IS: of each image the number of its answers, the sum of their scores, and the sums of their counts.
        measures: by name.
        seed: of the resamples.
    """
    values = {name: _measured(measure, sums_IS.sum(0)) for name, measure in measures.items()}
    if len(sums_IS) < 2:
        return {name: Estimate(value, None, None) for name, value in values.items()}
    resampled_RS = _resampled(sums_IS, seed)
    tail = 100 * (1 - LEVEL) / 2
    found = {}
    for name, measure in measures.items():
        low, high = np.percentile([_measured(measure, sums_S) for sums_S in resampled_RS], [tail, 100 - tail])
        found[name] = Estimate(values[name], float(low), float(high))
    return found


def _resampled(sums_IS: Floats, seed: int) -> Floats:
    """The sums over the images of each resample."""
    rng = np.random.default_rng(seed)
    images = len(sums_IS)
    shares = np.full(images, 1 / images)
    drawn = (rng.multinomial(images, shares, _AT_A_TIME) @ sums_IS for _ in range(RESAMPLES // _AT_A_TIME))
    return np.concatenate(list(drawn))


def _measured(measure: Measure, sums_S: Floats) -> float:
    number, total, *counts = sums_S.tolist()
    return measure(number, total, counts)
