"""From scores to tables: every selector against `zoo` and against every other one, by model, split and kind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.graded_corpus import PLAIN, GradedPrompt
from benchmarks.paired import estimate, holm, per_image, verdict

REFERENCE = "zoo"
ALL_TOKENS = "all tokens"
POOLED = "pooled"  # all models together
BOTH = "both"  # splits together
ONE_WORD, CAPTION = "one-word", "caption"
MARKS = {"better": "+", "worse": "-", "equal": "="}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One cell of a table. Scores are per cent, differences points; what a row does not have is None."""

    model: str
    split: str
    kind: str
    selector: str
    tokens: int
    questions: int
    percent: float
    low: float
    high: float
    seeds: list[float] | None  # per cent of each seed, where there are several
    points: float | None  # to the reference at the same budget, with its interval
    points_low: float | None
    points_high: float | None
    verdict: str | None
    holm: bool | None  # whether the difference stands beside all others of its model, split and kind


@dataclass(frozen=True)
class Scores:
    """Scores of all questions with all tokens (Q,) and of every run at every budget (R, B, Q), NaN where there is none.

    Of several models: the mean of their scores of each question. Models thereby share the resamples of images.
    """

    full_Q: Floats
    scores_RBQ: Floats


def groups(prompts: Sequence[GradedPrompt]) -> Iterator[tuple[str, str, NDArray[np.int64]]]:
    """Split, kind and the questions' numbers of every group: all kinds, and all one-word kinds together, by split.

    Splits are given together only where there are several.
    """
    splits = sorted({prompt.split for prompt in prompts}, key=lambda name: (name != PLAIN, name))
    kinds = sorted({prompt.kind for prompt in prompts})
    for split in [*splits, BOTH] if len(splits) > 1 else splits:
        here = [n for n, prompt in enumerate(prompts) if split in (prompt.split, BOTH)]
        members = {ONE_WORD: [n for n in here if not prompts[n].is_caption]}
        members |= {kind: [n for n in here if prompts[n].kind == kind] for kind in kinds}
        for kind, numbers in members.items():
            if numbers:
                yield split, kind, np.array(numbers)


def mean_of(models: Sequence[Scores]) -> Scores:
    """The models pooled."""
    return Scores(
        np.mean([model.full_Q for model in models], axis=0), np.mean([model.scores_RBQ for model in models], axis=0)
    )


class Comparison:
    """Scores of one model, or of several pooled, by selector: seeds of one selector are averaged question by question.

    Args:
        prompts: the questions, in the order of the scores.
        runs: what the first axis of the scores stands for, selectors with their seeds.
        tokens: what the second stands for.
    """

    def __init__(
        self,
        model: str,
        prompts: Sequence[GradedPrompt],
        runs: Sequence[tuple[str, int]],
        tokens: Sequence[int],
        num_tokens: int,
    ) -> None:
        self._model, self._prompts, self._tokens, self._num_tokens = model, prompts, tokens, num_tokens
        self.selectors = list(dict.fromkeys(name for name, _ in runs))
        self._seeds = {name: [n for n, run in enumerate(runs) if run[0] == name] for name in self.selectors}
        image_ids = list(dict.fromkeys(prompt.image_id for prompt in prompts))
        place = {image_id: n for n, image_id in enumerate(image_ids)}
        self._image_Q = np.array([place[prompt.image_id] for prompt in prompts])
        self._num_images = len(image_ids)

    def rows(self, scores: Scores) -> Iterator[Row]:
        """Every group's table."""
        for split, kind, numbers in groups(self._prompts):
            yield from self._table(split, kind, numbers, scores)

    def _cells(self, scores: Scores, numbers: NDArray[np.int64]) -> dict[tuple[str, int], Floats]:
        """Scores (Q,) of a group's questions by selector and budget, where there are any."""
        means = {name: scores.scores_RBQ[seeds][:, :, numbers].mean(0) for name, seeds in self._seeds.items()}
        return {
            (name, tokens): mean_BQ[place]
            for name, mean_BQ in means.items()
            for place, tokens in enumerate(self._tokens)
            if not np.isnan(mean_BQ[place]).any()
        }

    def _estimates(self, scores_CQ: Sequence[Floats], numbers: NDArray[np.int64]) -> list[tuple[float, ...]]:
        """Per cent with interval and p-value of each row of scores or differences of scores."""
        if not len(scores_CQ):
            return []
        sums_CI, asked_I = per_image(np.stack(scores_CQ), self._image_Q[numbers], self._num_images)
        found = estimate(sums_CI, asked_I)
        columns = (100 * found.value_C, 100 * found.low_C, 100 * found.high_C)
        return [
            (*(round(float(column[n]), 2) for column in columns), float(found.p_C[n])) for n in range(len(scores_CQ))
        ]

    def _table(self, split: str, kind: str, numbers: NDArray[np.int64], scores: Scores) -> Iterator[Row]:
        cells = self._cells(scores, numbers)
        levels = self._estimates([scores.full_Q[numbers], *cells.values()], numbers)
        compared = [cell for cell in cells if cell[0] != REFERENCE]
        against = [cells[name, tokens] - cells[REFERENCE, tokens] for name, tokens in compared]
        differences = dict(zip(compared, self._estimates(against, numbers), strict=True))
        stands = dict(zip(compared, holm([found[3] for found in differences.values()]), strict=True))
        group = (self._model, split, kind)
        nothing = (None, None, None, None, None, None)
        yield Row(*group, ALL_TOKENS, self._num_tokens, len(numbers), *levels[0][:3], *nothing)
        for (name, tokens), level in zip(cells, levels[1:], strict=True):
            place, seeds = self._tokens.index(tokens), self._seeds[name]
            of_seeds = [round(100 * float(scores.scores_RBQ[n, place, numbers].mean()), 2) for n in seeds]
            difference: tuple[Any, ...] = nothing[1:]
            if (name, tokens) in differences:
                points, low, high, _ = differences[name, tokens]
                difference = (points, low, high, verdict(low, high), stands[name, tokens])
            row = (*group, name, tokens, len(numbers), *level[:3], of_seeds if len(seeds) > 1 else None)
            yield Row(*row, *difference)

    def beaten(self, scores: Scores) -> list[dict[str, Any]]:
        """Who beats whom: for each selector the rivals whose score is larger, interval of the difference without zero.

        `at` lists them by budget; `after_holm` only those that stand beside all of that selector's rivals and budgets.
        Of one-word questions and of captions, by split.
        """
        found = []
        for split, kind, numbers in groups(self._prompts):
            if kind not in (ONE_WORD, CAPTION):
                continue
            cells = self._cells(scores, numbers)
            for name in self.selectors:
                rivals = [(rival, tokens) for rival, tokens in cells if rival != name and (name, tokens) in cells]
                against = [cells[rival, tokens] - cells[name, tokens] for rival, tokens in rivals]
                estimates = self._estimates(against, numbers)
                stands = holm([p for *_, p in estimates])
                at: dict[str, list[str]] = {}
                after_holm: dict[str, list[str]] = {}
                for (rival, tokens), (_, low, high, _), stays in zip(rivals, estimates, stands, strict=True):
                    if verdict(low, high) == "better":
                        at.setdefault(str(tokens), []).append(rival)
                        if stays:
                            after_holm.setdefault(str(tokens), []).append(rival)
                group = {"model": self._model, "split": split, "kind": kind, "selector": name}
                found.append({**group, "rivals": len(rivals), "at": at, "after_holm": after_holm})
        return found


def columnar(rows: Sequence[Row]) -> dict[str, Any]:
    """Names of the columns once, then values: a tenth of the bytes that objects would take."""
    return {"columns": list(Row.__dataclass_fields__), "rows": [list(asdict(row).values()) for row in rows]}


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a result file."""
    return [Row(**dict(zip(result["columns"], values, strict=True))) for values in result["rows"]]
