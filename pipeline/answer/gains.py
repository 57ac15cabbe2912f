"""Budgets by the gains that are stored: the threshold of a mean, what a threshold comes to, whether enough is stored.

Gains are read from the selections, without features, a shard at a time. Everything that is counted is a whole number
of tokens or images, so no order of shards or rows changes what comes out. Images count that a prompt which can be
posed asks about.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pipeline.answer.checks import Survey
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import dataset_of
from pipeline.budget import GainBudget, MeanBudget
from pipeline.errors import UserError
from schemas.columns import one_chunk
from schemas.records import JobRecord
from schemas.statuses import PromptStatus
from schemas.tables import PROMPTS, SELECTIONS
from schemas.wording import counted
from zoo_ops import POSITIONAL

_HALF = 1 << 16  # values of the upper and of the lower half of a float32's bits

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Spent:
    """What a threshold comes to."""

    images: int
    tokens: int  # that they keep in all
    short: int = 0  # images that might keep tokens which are not stored
    bound: float = 0.0  # no token that is not stored has a larger gain

    @property
    def mean(self) -> float:
        """Tokens of an image."""
        return self.tokens / self.images if self.images else 0.0


@dataclass(frozen=True)
class _Shard:
    """The gains of the images of one shard that are asked about."""

    gains_IK: Floats  # from the second pick on, the largest first; -inf where an image has no more
    kept_I: Whole  # tokens that are stored
    tokens_I: Whole  # that the image has
    bound_I: Floats  # no token of the image that is not stored has a larger gain; -inf where all are stored

    def granted(self, min_tokens: int) -> Whole:
        """What images keep whatever the threshold."""
        return np.minimum(self.tokens_I, min_tokens)


def check_gains(text: str, pruned: Artifact, prune_job: JobRecord) -> None:
    """Refuse a threshold on gains that are the same in every image.

    Raises:
        UserError: naming the selector.
    """
    selector = prune_job.settings.get("selector")
    if selector in POSITIONAL:
        raise UserError(
            f"--tokens {text}: {pruned.address} was pruned with --selector {selector}, whose gains say nothing of an "
            "image; ask for a count or a ratio, or prune with a selector that scores tokens, such as zoo"
        )


class StoredGains:
    """The gains in a pruned artifact, of the images that are asked about.

    Args:
        pruned: the artifact.
        found: its survey.
        asked: the ids of the images of a shard that are asked about; without it the prompts of the artifact say so.
    """

    def __init__(self, pruned: Artifact, found: Survey, asked: Callable[[int], pa.Array] | None = None) -> None:
        self._pruned, self._found, self._asked = pruned, found, asked

    def threshold(self, budget: MeanBudget) -> float:
        """The least threshold at which the mean is not exceeded; gains that tie there are all left out.

        Two readings: the first counts gains by the upper half of their bits, the second those within the one upper
        half in which the threshold lies by the lower half.
        """
        upper, granted, images = np.zeros(_HALF, np.int64), 0, 0
        for shard in self._shards():
            upper += np.bincount(_bits(_contested(shard, budget.min_tokens)) >> 16, minlength=_HALF)
            granted += int(shard.granted(budget.min_tokens).sum())
            images += len(shard.kept_I)
        left = int(np.floor(budget.tokens * images)) - granted
        if left >= upper.sum():
            return 0.0
        half, above = _last_beyond(upper, left)
        lower = np.zeros(_HALF, np.int64)
        for shard in self._shards():
            bits = _bits(_contested(shard, budget.min_tokens))
            lower += np.bincount(bits[bits >> 16 == half] & (_HALF - 1), minlength=_HALF)
        low, _ = _last_beyond(lower, left - above)
        return float(np.nextafter(_gain((half << 16) + low), np.float32(np.inf)))

    def spent(self, budget: GainBudget) -> Spent:
        """What the budget comes to."""
        images = tokens = short = 0
        bound = 0.0
        threshold = np.float64(budget.threshold)  # else NumPy would round it to float32 first
        for shard in self._shards():
            passing_I = 1 + (shard.gains_IK >= threshold).sum(1)
            kept_I = np.maximum(shard.granted(budget.min_tokens), passing_I)
            beyond = (shard.bound_I >= threshold) | (kept_I > shard.kept_I)
            images, tokens, short = images + len(kept_I), tokens + int(kept_I.sum()), short + int(beyond.sum())
            bound = max(bound, float(shard.bound_I.max(initial=0.0)))
        return Spent(images, tokens, short, bound)

    def check_stored(self, text: str, budget: GainBudget) -> Spent:
        """What the budget comes to.

        Raises:
            UserError: an image might keep tokens that are not stored; says what can be asked for.
        """
        spent = self.spent(budget)
        if not spent.short:
            return spent
        where = f"{counted(spent.short, 'images', 'have')} tokens that are not stored in {self._pruned.address}"
        remedy = "prune again with a larger --max-tokens"
        if self.spent(GainBudget(np.inf, budget.min_tokens)).short:
            raise UserError(
                f"--min-tokens {budget.min_tokens}: {where} and would need them; ask for fewer, or {remedy}"
            )
        over = np.nextafter(np.float32(spent.bound), np.float32(np.inf))
        most = np.floor(100 * self.spent(GainBudget(float(over), budget.min_tokens)).mean) / 100
        needed = "" if text.endswith(f":{budget.threshold:g}") else f" (the threshold would be {budget.threshold:.4g})"
        raise UserError(
            f"--tokens {text}: {where} and may gain as much{needed}: what is stored serves thresholds over "
            f"{spent.bound:.6g}, up to {most:g} tokens on average; ask for less, or {remedy}"
        )

    def _shards(self) -> Iterator[_Shard]:
        asked = self._asked or self._asked_by_the_artifact()
        for number, selections in enumerate(self._found.selections):
            is_asked = ds.field("image_id").isin(asked(number))
            columns = ["gain", "num_tokens", "position"]
            table = dataset_of(self._pruned.store, [selections], SELECTIONS).to_table(columns=columns, filter=is_asked)
            if len(table):
                yield _shard_of(table)

    def _asked_by_the_artifact(self) -> Callable[[int], pa.Array]:
        elsewhere = self._asked_from_elsewhere()
        here = (ds.field("status") == PromptStatus.OK) & (ds.field("image_shard") == ds.field("shard"))

        def asked(number: int) -> pa.Array:
            prompts = dataset_of(self._pruned.store, [self._found.prompts[number]], PROMPTS)
            own = prompts.to_table(columns=["image_id"], filter=here)["image_id"]
            return pa.concat_arrays([*own.chunks, pa.array(sorted(elsewhere[number]), pa.string())])

        return asked

    def _asked_from_elsewhere(self) -> defaultdict[int, set[str]]:
        """Images that prompts of other shards than their own ask about, which come with a corpus that has grown."""
        foreign = (ds.field("status") == PromptStatus.OK) & (ds.field("image_shard") != ds.field("shard"))
        found: defaultdict[int, set[str]] = defaultdict(set)
        prompts = dataset_of(self._pruned.store, self._found.prompts, PROMPTS)
        for batch in prompts.to_batches(columns=["image_id", "image_shard"], filter=foreign):
            for image_id, shard in zip(batch["image_id"].to_pylist(), batch["image_shard"].to_pylist(), strict=True):
                found[shard].add(image_id)
        return found


def _shard_of(table: pa.Table) -> _Shard:
    gain = one_chunk(table["gain"])
    kept_I = pc.list_value_length(gain).to_numpy().astype(np.int64)
    tokens_I = table["num_tokens"].to_numpy().astype(np.int64)
    is_stored_IK = np.arange(kept_I.max()) < kept_I[:, None]
    gains_IK = np.full(is_stored_IK.shape, -np.inf, np.float32)
    gains_IK[is_stored_IK] = gain.flatten().to_numpy()
    # The tiles of an image take turns: the last stored gain of each is among as many last ones as there are tiles.
    tile_IK = np.zeros(is_stored_IK.shape, np.int64)
    tile_IK[is_stored_IK] = one_chunk(table["position"]).flatten().field("tile").to_numpy()
    tiles_I = 1 + tile_IK.max(1)
    is_last_IK = is_stored_IK & (np.arange(kept_I.max()) >= (kept_I - tiles_I)[:, None])
    last_I = np.where(is_last_IK, gains_IK, -np.inf).max(1)
    bound_I = np.where(kept_I < tokens_I, last_I, -np.inf).astype(np.float32)
    later_IK = -np.sort(-gains_IK[:, 1:], axis=1)
    return _Shard(later_IK, kept_I, tokens_I, bound_I)


def _contested(shard: _Shard, min_tokens: int) -> Floats:
    """The gains of the tokens that a threshold decides about."""
    gains = shard.gains_IK[:, min_tokens - 1 :]
    return gains[gains > -np.inf]


def _bits(gains: Floats) -> NDArray[np.int64]:
    """Whole numbers in the order of the gains: their bits, with those of negative numbers turned over."""
    bits = gains.view(np.int32).astype(np.int64)
    return np.where(bits < 0, ~bits, bits + (1 << 31))


def _gain(bits: int) -> np.float32:
    """The gain with these bits, as `_bits` gives them."""
    raw = bits - (1 << 31) if bits >= 1 << 31 else ~bits
    return np.array([raw], np.int32).view(np.float32)[0]


def _last_beyond(counts: Whole, left: int) -> tuple[int, int]:
    """The largest place such that more than `left` are counted at it and above, and how many are above it."""
    at_and_above = np.cumsum(counts[::-1])[::-1]
    place = int(np.flatnonzero(at_and_above > left)[-1])
    return place, int(at_and_above[place] - counts[place])
