"""Which tokens are kept: how many, where in the image, and how sensitivities and gains are distributed.

What is about single tokens is taken from a sample: images of a few shards, drawn by a seed, so that a corpus of a
billion images takes no longer than one of some thousands.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from pipeline.report.rasters import centres_of, rasters_of
from schemas.wording import counted

Floats = NDArray[np.float64]

MAX_SHARDS = 64  # that the sample is taken from
MAX_IMAGES = 5_000
MIXED_SIDE = 24  # cells along a side of the map of images with grids of several sizes
MAX_SIDE = 48  # of a map of images with one grid, which is coarser beyond
BINS = 40
MAX_PICKS = 60  # at which the distribution of gains is told
QUANTILES = (5, 25, 50, 75, 95)
SHARES = (0.0625, 0.125, 0.25, 0.5)  # of the tokens that the map is made for, beside the budgets that were answered
MAX_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class Overview:
    """How much is kept, over the whole corpus."""

    images: int
    tokens: int
    kept: int
    tokens_least: int  # of an image
    tokens_most: int
    kept_least: int
    kept_most: int

    @property
    def share(self) -> float:
        """The share of all tokens that are kept."""
        return self.kept / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, kw_only=True)
class Level:
    """Where the first picks of an image lie."""

    name: str  # of the budget: "64", or "25 %"
    share: float  # of the tokens that are picked, on average
    rate_RC: Floats  # share of images that keep the token in this place
    centre: float  # the same over the middle half of rows and columns
    border: float  # over the rest


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often a value comes, for all tokens and for those that are picked first."""

    edges: Floats
    all_tokens: Floats  # share of them in each bin
    picked: Floats  # share of the picked ones in each bin
    picked_name: str
    is_log: bool
    median_all: float
    median_picked: float


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Quantiles of the gain of the n-th pick over images."""

    picks: Sequence[int]  # from 1
    quantiles_PQ: Floats


@dataclass(frozen=True, kw_only=True)
class Kept:
    """All of it."""

    overview: Overview
    sampled: int  # images whose tokens were looked at
    levels: Sequence[Level]
    main: str  # name of the level that is shown first, and whose picks the histogram tells apart
    grid: tuple[int, int] | None  # rows and columns of every image; None: they differ
    sensitivity: Histogram | None  # None where the projector is linear
    gains: Gains | None


@dataclass(frozen=True)
class _Sampled:
    """The tokens of one image."""

    num_tokens: int
    ranking: NDArray[np.int64]
    gain: Floats
    sensitivity: Floats | None
    centres: Floats
    grid: tuple[int, int]
    is_plain: bool  # one raster that is the whole grid


def kept_tokens(db: duckdb.DuckDBPyConnection, budgets: Sequence[tuple[str, float]], seed: int) -> Kept | None:
    """What is known of the kept tokens; None where there is no image.

    Args:
        db: a connection of `pipeline.report.query.connect`.
        budgets: name, and tokens an image on average, of those that were answered.
        seed: of the sample.
    """
    row = db.sql(
        "select count(*), sum(num_tokens), sum(num_kept), min(num_tokens), max(num_tokens), min(num_kept), "
        "max(num_kept) from images"
    ).fetchall()[0]
    if not row[0]:
        return None
    names = ("images", "tokens", "kept", "tokens_least", "tokens_most", "kept_least", "kept_most")
    overview = Overview(**{name: int(value) for name, value in zip(names, row, strict=True)})
    sample = _sample(db, seed)
    mean_tokens = overview.tokens / overview.images
    wanted = [(name, tokens / mean_tokens) for name, tokens in budgets if tokens < 0.999 * mean_tokens]
    taken = {_count(share, mean_tokens) for _, share in wanted}
    for share in SHARES:
        if _count(share, mean_tokens) not in taken:
            taken.add(_count(share, mean_tokens))
            wanted.append((f"{100 * share:g} %", share))
    wanted = sorted(
        ((name, share) for name, share in wanted if share <= overview.share + 1e-9), key=lambda one: -one[1]
    )[:MAX_LEVELS]
    if not wanted:
        wanted = [("all that are stored", overview.share)]
    grids = {one.grid for one in sample if one.is_plain} | {None for one in sample if not one.is_plain}
    grid = next(iter(grids)) if len(grids) == 1 else None
    shape = tuple(min(side, MAX_SIDE) for side in grid) if grid is not None else (MIXED_SIDE, MIXED_SIDE)
    answered = [name for name, _ in wanted if name in dict(budgets)]
    main = answered[-1] if answered else wanted[-1][0]  # the smallest one
    return Kept(
        overview=overview,
        sampled=len(sample),
        levels=[_level(sample, name, share, shape) for name, share in wanted],
        main=main,
        grid=grid,
        sensitivity=_histogram(sample, main, dict(wanted)[main]),
        gains=_gains(sample),
    )


def _count(share: float, tokens: float) -> int:
    """How many of so many tokens a share is."""
    return max(1, int(share * tokens + 0.5))


def _sample(db: duckdb.DuckDBPyConnection, seed: int) -> list[_Sampled]:
    shards = db.execute(
        f"select shard from shards order by md5(concat(?, '/', shard)), shard limit {MAX_SHARDS}", [str(seed)]
    ).fetchall()
    chosen = ", ".join(str(shard) for (shard,) in shards)
    rows = db.execute(
        f"""
        select num_tokens, ranking, gain, sensitivity, segments, grid from images where shard in ({chosen})
        order by md5(concat(?, '/', image_id)), image_id limit {MAX_IMAGES}""",
        [str(seed)],
    )
    sample = []
    while found := rows.fetchmany(256):
        for num_tokens, ranking, gain, sensitivity, segments, grid in found:
            rasters = rasters_of(segments, grid)
            sample.append(
                _Sampled(
                    num_tokens=num_tokens,
                    ranking=np.asarray(ranking, np.int64),
                    gain=np.asarray(gain, float),
                    sensitivity=None if sensitivity is None else np.asarray(sensitivity, float),
                    centres=centres_of(rasters),
                    grid=(grid["rows"], grid["cols"]),
                    is_plain=len(rasters) == 1,
                )
            )
    return sample


def _picks(one: _Sampled, share: float) -> int:
    return min(len(one.ranking), _count(share, one.num_tokens))


def _level(sample: Sequence[_Sampled], name: str, share: float, shape: tuple[int, ...]) -> Level:
    rows, cols = shape
    kept, there = np.zeros(rows * cols), np.zeros(rows * cols)
    for one in sample:
        x, y = one.centres.T
        cell = np.minimum((y * rows).astype(int), rows - 1) * cols + np.minimum((x * cols).astype(int), cols - 1)
        there += np.bincount(cell, minlength=rows * cols)
        kept += np.bincount(cell[one.ranking[: _picks(one, share)]], minlength=rows * cols)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = (kept / there).reshape(rows, cols)
    inner = np.zeros((rows, cols), bool)
    inner[rows // 4 : rows - rows // 4, cols // 4 : cols - cols // 4] = True
    centre, border = (
        float(kept[part].sum() / there[part].sum()) if there[part].sum() else float("nan")
        for part in (inner.ravel(), ~inner.ravel())
    )
    return Level(name=name, share=share, rate_RC=rate, centre=centre, border=border)


def _histogram(sample: Sequence[_Sampled], name: str, share: float) -> Histogram | None:
    every = [one.sensitivity for one in sample if one.sensitivity is not None]
    if not every:
        return None
    picked = [one.sensitivity[one.ranking[: _picks(one, share)]] for one in sample if one.sensitivity is not None]
    values, first = np.concatenate(every), np.concatenate(picked)
    least, most = np.quantile(values, [0.001, 0.999])
    is_log = bool(least > 0 and most > 20 * least)
    if most <= least:
        least, most = least - 0.5, most + 0.5
    edges = np.geomspace(least, most, BINS + 1) if is_log else np.linspace(least, most, BINS + 1)
    shares = [np.histogram(np.clip(one, least, most), edges)[0] / len(one) for one in (values, first)]
    return Histogram(
        edges=edges,
        all_tokens=shares[0],
        picked=shares[1],
        picked_name=name,
        is_log=is_log,
        median_all=float(np.median(values)),
        median_picked=float(np.median(first)),
    )


def _gains(sample: Sequence[_Sampled]) -> Gains | None:
    longest = max((len(one.gain) for one in sample), default=0)
    if not longest:
        return None
    spread = np.geomspace(1, longest, min(MAX_PICKS, longest))
    picks = sorted({1, *np.unique(spread.round().astype(int)).tolist()})
    quantiles = [
        np.percentile([one.gain[pick - 1] for one in sample if len(one.gain) >= pick], QUANTILES) for pick in picks
    ]
    return Gains(picks=picks, quantiles_PQ=np.asarray(quantiles))


def in_words(overview: Overview) -> str:
    """How many tokens of an image are stored: `64 of 256 tokens`, `64 to 128 of 256 to 1,024 tokens`."""
    kept = _range(overview.kept_least, overview.kept_most)
    tokens = _range(overview.tokens_least, overview.tokens_most)
    if (overview.kept_least, overview.kept_most) == (overview.tokens_least, overview.tokens_most):
        return f"all {tokens} tokens"
    return f"{kept} of {tokens} tokens"


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def images_in_words(kept: Kept) -> str:
    """What the figures about single tokens are taken from."""
    if kept.sampled == kept.overview.images:
        return f"all {counted(kept.sampled, 'images')}"
    return f"{kept.sampled:,} of {kept.overview.images:,} images, drawn by a seed"
