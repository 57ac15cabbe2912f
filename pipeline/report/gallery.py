"""The gallery of a report: a sample of the images with what was asked and answered about them.

Every card has the same allotment of bytes: texts take up to half of it, the ranking and the grid an eighth each, and
the thumbnail is made small enough for the rest. So the size of the gallery is bounded whatever the corpus holds.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
from markupsafe import escape

from pipeline.artifact.index import Index
from pipeline.report.accuracy import RIGHT, Accuracy
from pipeline.report.rasters import WHOLE, Part, Raster, SeenPart, rasters_of
from pipeline.report.thumbnails import thumbnails
from schemas.views import quoted
from schemas.wording import clipped, visible

GALLERY_BYTES = 15_000_000
MAX_CARD_BYTES = 128_000
MAX_PROMPTS = 24  # of a card
MAX_TEXT = 600  # characters of a prompt or an answer
MAX_REFERENCES = 5
MAX_REFERENCE = 120
_PROMPT_BYTES = 900  # of markup around one prompt, its answers not counted
_ANSWER_BYTES = 420  # of markup around one answer
_RASTER_BYTES = 64
_MOST_NARROW = 1 << 16  # tokens whose numbers take two bytes
_CARD_BYTES = 1_600  # of markup around one card


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer at one budget."""

    run: int
    text: str | None  # None: there is none
    score: float | None
    is_right: bool | None
    is_cut: bool  # it is as long as an answer may be


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt about an image and its answers, in the order of the runs."""

    prompt: str
    type: str
    references: Sequence[str]
    answers: Sequence[Answered]

    @property
    def marks(self) -> str:
        """A letter a run: right, wrong, or not scored."""
        return "".join({True: "r", False: "w", None: "-"}[one.is_right] for one in self.answers)


@dataclass(kw_only=True)
class Card:
    """One image of the gallery."""

    image_id: str
    source: str
    width: int
    height: int
    num_tokens: int
    num_kept: int
    rasters: Sequence[Raster]
    ranking: Sequence[int]
    seen: Part
    tokens: Sequence[int]  # that the model saw of it in each run; 0: it was not asked about it
    prompts: list[Asked] = field(default_factory=list)
    left_out: int = 0  # prompts that had no room
    thumbnail: str | None = None  # as a data URL
    problem: str | None = None  # why there is none

    def drawing(self) -> dict[str, Any]:
        """What draws the overlay: numbers alone, and the ranking as base64 of little-endian integers."""
        wide = self.num_tokens > _MOST_NARROW
        ranking = np.asarray(self.ranking, "<u4" if wide else "<u2").tobytes()
        return {
            "n": self.num_tokens,
            "k": self.num_kept,
            "wide": wide,
            "ranking": base64.b64encode(ranking).decode(),
            "rasters": [
                [
                    one.rows,
                    one.cols,
                    *(round(v, 6) for v in (one.x, one.y, one.width, one.height)),
                    int(one.is_overview),
                ]
                for one in self.rasters
            ],
            "seen": [round(value, 6) for value in (self.seen.x, self.seen.y, self.seen.width, self.seen.height)],
            "tokens": list(self.tokens),
        }


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The cards, and what to say of them as a whole."""

    cards: Sequence[Card]
    lost: int  # of them drawn from the images of which a smaller budget loses an answer; the others from all images
    notes: Sequence[str]
    types: Sequence[str]
    budgets: Sequence[str]  # that were answered, the most tokens first


def make_gallery(
    db: duckdb.DuckDBPyConnection,
    count: int,
    seed: int,
    accuracy: Accuracy | None,
    index: Index | None,
    seen: SeenPart | None,
    say: Callable[[str], None],
) -> Gallery:
    """The gallery of up to `count` images.

    Args:
        db: a connection of `pipeline.report.query.connect`.
        count: of images.
        seed: of the sample.
        accuracy: of the answers; None where there are none.
        index: of the pruned artifact; None where it is gone.
        seen: what the model sees of a picture; None where that is not known.
        say: takes one line for the user.
    """
    budgets = [run.budget for run in accuracy.runs if not run.is_control] if accuracy is not None else []
    chosen, lost = _chosen(db, count, seed, budgets)
    allotment = min(MAX_CARD_BYTES, GALLERY_BYTES // max(1, len(chosen)))
    cards = _cards(db, chosen, budgets, seen or (lambda _width, _height: WHOLE), allotment // 8)
    asked = _asked(db, chosen, budgets)
    notes = []
    if seen is None and cards:
        notes.append(
            "The settings of the model's image processor can't be read any more, so tokens are laid over whole "
            "pictures; if the processor crops them, the tokens lie closer to the centre than is drawn."
        )
    for card in cards:
        if len(card.rasters) > allotment // 8 // _RASTER_BYTES:
            card.rasters, card.ranking = (), ()  # nothing is drawn over such a picture
        _take_prompts(card, asked.get(card.image_id, ()), allotment // 2)
    made = thumbnails(chosen, index, allotment // 4, say)
    for card in cards:
        card.thumbnail, problem = made[card.image_id]
        card.problem = None if problem is None else clipped(problem, MAX_TEXT)
    notes += _unread(cards)
    types = dict.fromkeys(prompt.type for card in cards for prompt in card.prompts)
    return Gallery(cards=cards, lost=lost, notes=notes, types=sorted(types), budgets=budgets)


def _unread(cards: Sequence[Card]) -> list[str]:
    """What to say of the pictures that can't be read any more."""
    problems = [card.problem for card in cards if card.problem is not None]
    if not problems:
        return []
    which = (
        "No picture" if len(problems) == len(cards) else f"{len(cards) - len(problems):,} of {len(cards):,} pictures"
    )
    return [f"{which} could be read from the corpus again. The first reason: {visible(problems[0])}"]


def _chosen(db: duckdb.DuckDBPyConnection, count: int, seed: int, budgets: Sequence[str]) -> tuple[dict[str, int], int]:
    """The shard of each image that is chosen, by its id, and how many were chosen because an answer about it is lost.

    At most half are, and none where all images are shown; the others are drawn from all images.
    """
    order = f"order by md5(concat('{seed}', '/', image_id)), image_id"
    lost: list[tuple[str, int]] = []
    (images,) = db.sql("select count(*) from images").fetchall()[0]
    if len(budgets) > 1 and images > count:
        lost = db.execute(
            f"""
            with lost as (
                select distinct image_id from (
                    select image_id, prompt_id from answers where score is not null group by image_id, prompt_id
                    having bool_or(budget = ? and score >= {RIGHT}) and bool_or(budget <> ? and score < {RIGHT})
                )
            )
            select image_id, shard from images semi join lost using (image_id) {order} limit {count // 2}""",
            [budgets[0], budgets[0]],
        ).fetchall()
    chosen = dict(lost)
    for image_id, shard in db.sql(f"select image_id, shard from images {order} limit {count}").fetchall():
        if len(chosen) < count:
            chosen.setdefault(image_id, shard)
    return chosen, len(lost)


def _picks_in(size_bytes: int, is_wide: bool = False) -> int:
    """How many picks of a ranking take so many bytes in base64."""
    return size_bytes * 3 // (16 if is_wide else 8)


def _named(chosen: Mapping[str, int]) -> str:
    """A list of images in SQL; an id is a sha256 in hex, but that of a damaged artifact may be any text."""
    return ", ".join(map(quoted, chosen))


def _cards(
    db: duckdb.DuckDBPyConnection, chosen: Mapping[str, int], budgets: Sequence[str], seen: SeenPart, most: int
) -> list[Card]:
    if not chosen:
        return []
    images, shards = _named(chosen), ", ".join(map(str, sorted(set(chosen.values()))))
    rows = db.sql(
        "select image_id, source, width, height, num_tokens, num_kept, grid, segments, "
        f"ranking[1:{_picks_in(most)}] from images "
        f"where shard in ({shards}) and image_id in ({images})"
    ).fetchall()
    tokens: dict[tuple[str, str], int] = {}
    if budgets:
        told = db.sql(
            f"select image_id, budget, max(tokens) from answers where image_id in ({images}) group by image_id, budget"
        )
        tokens = {(image_id, budget): number for image_id, budget, number in told.fetchall()}
    cards = {
        image_id: Card(
            image_id=image_id,
            source=clipped(source, MAX_TEXT),
            width=width,
            height=height,
            num_tokens=num_tokens,
            num_kept=num_kept,
            rasters=rasters_of(segments, grid),
            ranking=ranking[: _picks_in(most, is_wide=num_tokens > _MOST_NARROW)],
            seen=seen(width, height),
            tokens=[tokens.get((image_id, budget), 0) for budget in budgets],
        )
        for image_id, source, width, height, num_tokens, num_kept, grid, segments, ranking in rows
    }
    return [cards[image_id] for image_id in sorted(chosen)]


def _asked(db: duckdb.DuckDBPyConnection, chosen: Mapping[str, int], budgets: Sequence[str]) -> dict[str, list[Asked]]:
    """The prompts of each image, those with an answer that is lost first."""
    if not chosen:
        return {}
    images = _named(chosen)
    answers: dict[str, dict[str, Answered]] = {}
    if budgets:
        told = db.sql(
            f"""
            select prompt_id, budget, answer, score, finish_reason = 'length' from answers
            where image_id in ({images})"""
        ).fetchall()
        for prompt_id, budget, answer, score, is_cut in told:
            answers.setdefault(prompt_id, {})[budget] = Answered(
                run=budgets.index(budget),
                text=None if answer is None else clipped(answer, MAX_TEXT),
                score=score,
                is_right=None if score is None else score >= RIGHT,
                is_cut=bool(is_cut),
            )
    rows = db.sql(
        f"""
        select image_id, prompt_id, prompt, "references", coalesce(type, '-') from prompts
        where image_id in ({images}) and status = 'ok' order by image_id, prompt_id"""
    ).fetchall()
    asked: dict[str, list[Asked]] = {}
    for image_id, prompt_id, prompt, references, kind in rows:
        own = answers.get(prompt_id, {})
        asked.setdefault(image_id, []).append(
            Asked(
                prompt=clipped(prompt, MAX_TEXT),
                type=clipped(kind, MAX_REFERENCE),
                references=[clipped(one, MAX_REFERENCE) for one in references[:MAX_REFERENCES]],
                answers=[
                    own.get(budget) or Answered(run=run, text=None, score=None, is_right=None, is_cut=False)
                    for run, budget in enumerate(budgets)
                ],
            )
        )
    for prompts in asked.values():
        prompts.sort(key=lambda one: not (one.marks[:1] == "r" and "w" in one.marks))
    return asked


def _take_prompts(card: Card, asked: Sequence[Asked], most: int) -> None:
    """As many prompts as have room in these bytes."""
    left = most - _CARD_BYTES - 2 * bytes_of(card.source)
    for prompt in asked[:MAX_PROMPTS]:
        left -= _PROMPT_BYTES + 2 * bytes_of(prompt.type) + bytes_of(prompt.prompt)
        left -= sum(40 + bytes_of(one) for one in prompt.references)
        left -= sum(_ANSWER_BYTES + bytes_of(one.text or "") for one in prompt.answers)
        if left < 0:
            break
        card.prompts.append(prompt)
    card.left_out = len(asked) - len(card.prompts)


def bytes_of(text: str) -> int:
    """The bytes of a text in the report: what acts is written out, what is markup is escaped."""
    return sum(len(str(escape(visible(line))).encode()) + 1 for line in text.split("\n"))
