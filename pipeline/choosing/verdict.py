"""From the trials of a sample to a verdict: losses, bounds, the fixed sequence of tests, and sentences."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.choosing.resampling import LEVEL, Floats, interval, per_image, resampled, upper_bounds
from pipeline.choosing.settings import ChooseSettings
from pipeline.choosing.stage import AGREEMENT, Run, runs_of
from pipeline.errors import UserError
from schemas.choice import BudgetTrial, Choice, ControlTrial, Difference, GroupLoss, Sampled, Verdict
from schemas.wording import counted

_Z_95, _Z_80 = 1.6448536269514722, 0.8416212335729143  # quantiles of the normal distribution
_MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Trials:
    """Scores of the prompts that count, from 0 to 1."""

    image_Q: NDArray[np.int64]
    types_Q: list[str | None]
    metrics_Q: list[str]
    full_Q: Floats
    scores_RBQ: Floats  # by run and budget
    mean_tokens_B: Floats
    mean_tokens: float  # with all
    num_images: int
    refused: int
    without_references: int
    unscored: int = 0


def trials_of(table: pa.Table, runs: Sequence[Run], budgets: Sequence[str]) -> Trials:
    """The scores in a table of trials, in an order that does not depend on that of its rows.

    Where some prompts have references the others do not count.

    Raises:
        UserError: no prompt can count.
    """
    with_all = table.filter(pa.compute.is_null(table["selector"])).sort_by(
        [("image_id", "ascending"), ("prompt_id", "ascending")]
    )
    prompt_ids = with_all["prompt_id"].to_pylist()
    place = {prompt_id: number for number, prompt_id in enumerate(prompt_ids)}
    where_R = {run: number for number, run in enumerate(runs)}
    where_B = {budget: number for number, budget in enumerate(budgets)}
    scores_RBQ = np.full((len(runs), len(budgets), len(prompt_ids)), np.nan)
    kept_BQ = np.zeros((len(budgets), len(prompt_ids)))
    tried = table.filter(pa.compute.is_valid(table["selector"]))
    answered = np.array([answer is not None for answer in with_all["answer"].to_pylist()], bool)
    names = ("prompt_id", "selector", "seed", "budget", "answer", "score", "tokens")
    for prompt_id, selector, seed, budget, answer, score, tokens in zip(
        *(tried[name].to_pylist() for name in names), strict=True
    ):
        at = where_B[budget], place[prompt_id]
        scores_RBQ[where_R[selector, seed], *at] = np.nan if score is None else score
        kept_BQ[at] = tokens
        answered[place[prompt_id]] &= answer is not None
    full_Q = np.array([np.nan if score is None else score for score in with_all["score"].to_pylist()], np.float64)
    scored = answered & ~(np.isnan(full_Q) | np.isnan(scores_RBQ).any((0, 1)))
    has_references = np.array([metric != AGREEMENT for metric in with_all["metric"].to_pylist()], bool)
    counts = scored & has_references if (answered & has_references).any() else scored
    if not counts.any():
        why = "their metrics can score none of its prompts by their references; name other ones by --metric"
        if not answered.any():
            why = "the model can take none of its prompts; the column `finish_reason` of trials/ says so"
        raise UserError(f"--sample: {why}")
    numbers = np.flatnonzero(counts)
    image_ids = np.array(with_all["image_id"].to_pylist())[numbers]
    distinct, firsts, image_Q = np.unique(image_ids, return_index=True, return_inverse=True)
    types, metrics = with_all["type"].to_pylist(), with_all["metric"].to_pylist()
    return Trials(
        image_Q=image_Q,
        types_Q=[types[number] for number in numbers],
        metrics_Q=[metrics[number] for number in numbers],
        full_Q=full_Q[numbers],
        scores_RBQ=scores_RBQ[:, :, numbers],
        mean_tokens_B=kept_BQ[:, numbers[firsts]].mean(1),
        mean_tokens=float(np.array(with_all["num_tokens"].to_pylist())[numbers[firsts]].mean()),
        num_images=len(distinct),
        refused=int((~answered).sum()),
        without_references=int((scored & ~counts).sum()),
        unscored=int((answered & ~scored).sum()),
    )


def decide(settings: ChooseSettings, trials: Trials) -> Choice:
    """The outcome."""
    runs = runs_of(settings.selector)
    order = sorted(range(len(settings.budgets)), key=lambda b: -trials.mean_tokens_B[b])
    budgets: list[BudgetTrial] = []
    tells = 100 * trials.full_Q.mean() > settings.tolerance  # else there is no more to lose than the tolerance
    for place in order:
        may_test = tells and all(one.verdict == "safe" for one in budgets)
        budgets.append(_tried(settings, trials, runs, place, may_test))
    safe = [one for one in budgets if one.verdict == "safe"]
    choice = Choice(
        corpus=settings.corpus,
        model=settings.model,
        selector=settings.selector,
        tolerance=settings.tolerance,
        confidence=LEVEL,
        sample=Sampled(
            asked=settings.sample,
            seed=settings.seed,
            images=trials.num_images,
            prompts=len(trials.full_Q),
            refused=trials.refused,
            without_references=trials.without_references,
            unscored=trials.unscored,
            metrics=tuple(sorted(set(trials.metrics_Q))),
        ),
        all_tokens=_points(trials.full_Q.mean()),
        mean_tokens=trials.mean_tokens,
        budgets=tuple(budgets),
        chosen=safe[-1].tokens if safe else None,
        findings=(),
    )
    return choice.model_copy(update={"findings": tuple(findings(choice))})


def _points(share: float) -> float:
    return round(100 * float(share), 3)


def _difference(value: float, low: float, high: float) -> Difference:
    return Difference(points=_points(value), low=_points(low), high=_points(high))


def _tried(settings: ChooseSettings, trials: Trials, runs: Sequence[Run], place: int, may_test: bool) -> BudgetTrial:
    names = list(dict.fromkeys(name for name, _ in runs))
    of_name = {name: [number for number, run in enumerate(runs) if run[0] == name] for name in names}
    scores_CQ = np.stack([trials.scores_RBQ[of_name[name], place].mean(0) for name in names])
    losses_CQ = trials.full_Q - scores_CQ
    ahead_CQ = scores_CQ[0] - scores_CQ[1:]
    sums_CI, asked_I = per_image(np.concatenate([losses_CQ, ahead_CQ]), trials.image_Q, trials.num_images)
    found_CR = resampled(sums_CI, asked_I)
    low_C, high_C = interval(found_CR)
    value_C = sums_CI.sum(1) / asked_I.sum()
    bound_C = upper_bounds(sums_CI[: len(names)], asked_I)
    tolerance = settings.tolerance / 100
    verdict: Verdict = "not tested" if not may_test else "safe" if bound_C[0] <= tolerance else "not safe"
    differences = [_difference(*one) for one in zip(value_C, low_C, high_C, strict=True)]
    return BudgetTrial(
        tokens=settings.budgets[place],
        mean_tokens=float(trials.mean_tokens_B[place]),
        score=_points(scores_CQ[0].mean()),
        loss=differences[0],
        bound=_points(bound_C[0]),
        verdict=verdict,
        images_to_settle=images_to_settle(float(value_C[0]), float(found_CR[0].std()), tolerance, asked_I)
        if verdict == "not safe"
        else None,
        groups=tuple(_groups(trials, scores_CQ[0])),
        controls=tuple(
            ControlTrial(
                selector=name,
                seeds=len(of_name[name]),
                score=_points(scores_CQ[number].mean()),
                loss=differences[number],
                bound=_points(bound_C[number]),
                ahead=differences[len(names) + number - 1],
                does_as_well=bool(low_C[len(names) + number - 1] <= 0),
            )
            for number, name in enumerate(names)
            if number
        ),
    )


def images_to_settle(loss: float, error: float, tolerance: float, asked_I: Floats) -> int | None:
    """Images of a sample that would tell, with about 80 % power, on which side of the tolerance a loss lies.

    If the loss is what it seems, the smallest n' for which

        |tolerance - loss| >= (z_95 + z_80) error sqrt(n / n') + c m / (n' * mean of n_i)

    with c = (z_95^2 + 2) / 3 where the loss is below the tolerance: what the bound adds for images that were not seen
    and for skewness, by the expansion of the gamma distribution. Elsewhere c = 0. It is never less than
    what proves a tolerance where nothing is lost, ln(20) m / (tolerance * mean of n_i).

    Args:
        loss: as estimated on n images.
        error: its standard error there.
        tolerance: on the same scale.
        asked_I: numbers of prompts of these images.

    Returns:
        None beyond ten million.
    """
    gap = abs(tolerance - loss)
    if not gap:
        return None
    unseen = float(np.square(asked_I).sum() / asked_I.sum() / asked_I.mean())
    slope, constant, least = (_Z_95 + _Z_80) * error * math.sqrt(len(asked_I)), 0.0, 1.0
    if loss < tolerance:
        constant = (_Z_95**2 + 2) / 3 * unseen
        least = math.log(1 / (1 - LEVEL)) * unseen / tolerance
    root = (slope + math.sqrt(slope**2 + 4 * gap * constant)) / (2 * gap)
    images = max(root**2, least)
    return math.ceil(images - 1e-9) if images <= _MOST_IMAGES else None


def _groups(trials: Trials, scores_Q: Floats) -> Iterator[GroupLoss]:
    """Every type and metric, the one that loses most first."""
    kinds = sorted(set(zip(trials.types_Q, trials.metrics_Q, strict=True)), key=lambda kind: (kind[0] or "", kind[1]))
    found = []
    for kind, metric in kinds:
        members = np.array([one == (kind, metric) for one in zip(trials.types_Q, trials.metrics_Q, strict=True)], bool)
        _, image_Q = np.unique(trials.image_Q[members], return_inverse=True)
        loss_Q = trials.full_Q[members] - scores_Q[members]
        sums_CI, asked_I = per_image(loss_Q[None], image_Q, int(image_Q.max()) + 1)
        (low,), (high,) = interval(resampled(sums_CI, asked_I))
        found.append(
            GroupLoss(
                type=kind,
                metric=metric,
                prompts=int(members.sum()),
                images=len(asked_I),
                all_tokens=_points(trials.full_Q[members].mean()),
                score=_points(scores_Q[members].mean()),
                loss=_difference(loss_Q.mean(), low, high),
            )
        )
    yield from sorted(found, key=lambda group: -group.loss.points)


def findings(choice: Choice) -> Iterator[str]:
    """What the numbers say, in sentences. Nothing is recommended that was not measured."""
    percent = f"{100 * choice.confidence:g} %"
    tolerance = f"{choice.tolerance:g} points"
    safe = [one for one in choice.budgets if one.verdict == "safe"]
    first_unsafe = next((one for one in choice.budgets if one.verdict == "not safe"), None)
    if choice.budgets[0].verdict == "not tested":
        yield (
            f"Nothing was tested: with all tokens the score is {choice.all_tokens:.2f} points, so no budget could lose "
            f"more than {tolerance}; name a --metric that fits the prompts, or a smaller --tolerance."
        )
        yield from _left_out(choice.sample)
        return
    if safe:
        one = safe[-1]
        yield (
            f"{_named(one)} is the smallest budget measured whose loss is at most {tolerance} with {percent} "
            f"confidence: it loses {one.loss.points:.2f} points of {choice.all_tokens:.2f}, at most {one.bound:.2f}."
        )
    else:
        yield f"None of the budgets measured loses at most {tolerance} with {percent} confidence."
    if first_unsafe is not None:
        one = first_unsafe
        yield f"{_named(one)} is not shown to be safe: it loses {one.loss.points:.2f} points, at most {one.bound:.2f}."
        if one.images_to_settle is None:
            yield "Its loss is so near the tolerance that no sample of a practical size would tell."
        else:
            side = "it is safe" if one.loss.points < choice.tolerance else "it loses more than the tolerance"
            yield (
                f"If it loses what it seems to, a sample of about {one.images_to_settle:,} images would show that "
                f"{side}; this one has {choice.sample.images:,}."
            )
    untested = [one.tokens for one in choice.budgets if one.verdict == "not tested"]
    if untested:
        yield f"Not tested, because a larger budget is not safe: {', '.join(untested)}."
    told = safe[-1] if safe else choice.budgets[0]
    for control in told.controls:
        ahead = f"{choice.selector} is ahead by {_interval(control.ahead)}"
        if control.does_as_well:
            yield f"At {told.tokens} {control.selector} does as well: {ahead}."
    shown = [group for group in told.groups if group.loss.low > 0 and group.images > 1]  # one image has no interval
    if len(told.groups) > 1 and shown:
        worst = shown[0]
        yield (
            f"At {told.tokens} prompts of type {worst.type or '-'} suffer most: they lose {_interval(worst.loss)} "
            f"({counted(worst.prompts, 'prompts')}, {worst.metric})."
        )
    elif len(told.groups) > 1:
        yield f"At {told.tokens} no type of prompts is shown to suffer."
    if choice.sample.metrics == (AGREEMENT,):
        yield "There are no references: the score is agreement with the answers at all tokens, right or wrong."
    yield from _left_out(choice.sample)


def _left_out(sample: Sampled) -> Iterator[str]:
    """What does not count, and why."""
    reasons = [
        (sample.without_references, "without references"),
        (sample.unscored, "whose references their metric can't score by"),
        (sample.refused, "that the model can't take"),
    ]
    number = sum(count for count, _ in reasons)
    if number:
        said = ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)
        yield f"{number:,} more {'prompt does' if number == 1 else 'prompts do'} not count: {said}."
    if sample.images < sample.asked:
        yield (
            f"{sample.images:,} of the {sample.asked:,} images asked for were measured: the corpus has no more with "
            "prompts that count, or the errors table of pruned/ says what became of the others."
        )


def _named(one: BudgetTrial) -> str:
    return f"--tokens {one.tokens} ({one.mean_tokens:g} tokens an image)"


def _interval(one: Difference) -> str:
    return f"{one.points:.2f} [{one.low:.2f}, {one.high:.2f}] points"
