"""Parts of images whose tokens are all there, answered once each, whichever selectors chose them.

A language model sees of an image the kept features in raster order and nothing else. So sets of all selectors and
budgets run beside each other, and a set that several of them chose is answered once. No tower takes part.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Engine, Question, Reply
from pipeline.families.base import KeptImage, Posed, Segment
from pipeline.prune.select import image_seed
from zoo_ops import POSITIONAL, rank_tokens


@dataclass(frozen=True, slots=True)
class KeptSet:
    """Some tokens of an image."""

    image_id: str
    kept: KeptImage  # under a name that stands for exactly this set, so that no other shares the pass over it


def set_of(whole: KeptImage, tokens: Iterable[int]) -> KeptSet:
    """The image, of which all tokens are given, with some of them alone."""
    assert len(whole.indices_K) == whole.selection.num_tokens, "all tokens are there"
    indices = torch.tensor(sorted(tokens), dtype=torch.int64)
    kept = replace(
        whole,
        image_id=f"{whole.image_id} {indices.tolist()}",
        indices_K=indices,
        features_KO=whole.features_KO[indices],
        extras_KO={name: rows[indices] for name, rows in whole.extras_KO.items()},
    )
    return KeptSet(whole.image_id, kept)


def control_ranking(whole: KeptImage, selector: str, seed: int) -> list[int]:
    """All tokens of an image in the order in which `random` or `uniform_grid` picks them, as when pruning by them.

    Neither looks at a feature: it goes by the image's id, or by where the tokens lie, tile by tile.
    """
    assert selector in POSITIONAL, "other selectors need what the tower gave"
    places = torch.cat([Segment(**segment).places() for segment in whole.selection.segments])
    ranking = rank_tokens(
        torch.zeros(1, len(places), 1),
        None,
        max_tokens=len(places),
        selector=selector,
        groups_BN=places[None, :, 0],
        seeds_B=torch.tensor([image_seed(whole.image_id, seed)]),
        positions_BNC=places[None, :, 1:],
    )
    order: list[int] = ranking.indices_BK[0].tolist()
    return order


def answer_sets(
    engine: Engine,
    sets: Sequence[KeptSet],
    prompts: Sequence[Posed],
    about: Mapping[str, Sequence[int]],
    *,
    long: Collection[int],
    max_new_tokens: int,
) -> list[dict[int, Reply]]:
    """Replies to all prompts about each set's image, by the prompt's number.

    Args:
        engine: the language model.
        sets: all different.
        prompts: what is asked.
        about: the numbers of the prompts about an image, by its id.
        long: numbers of prompts whose answers are long: they run apart, and let no short one wait.
        max_new_tokens: of an answer.
    """
    replies: list[dict[int, Reply]] = [{} for _ in sets]
    for are_long in (False, True):
        asked = [
            (place, number)
            for place, one in enumerate(sets)
            for number in about.get(one.image_id, ())
            if (number in long) == are_long
        ]
        questions = [Question(prompts[number], sets[place].kept) for place, number in asked]
        found = engine.answer(questions, Decoding(max_new_tokens))
        for (place, number), reply in zip(asked, found, strict=True):
            replies[place][number] = reply
    return replies
