"""Accuracy of answers at each budget, by type of prompt, with what is lost against the largest budget.

Prompts about one image are not independent, so images are resampled, each with all of its prompts (cluster bootstrap).
An image has for every budget the number n_i of its prompts that are scored and the sum s_i of their scores; a resample
that draws image i c_i times estimates sum_i c_i s_i / sum_i c_i n_i. The loss compares the same prompts at two budgets,
and both take part in the same resamples, so that what is common to them cancels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import dataset_of
from pipeline.errors import UserError
from schemas.tables import ANSWERS
from schemas.views import quoted

Floats = NDArray[np.float64]

RESAMPLES = 2_000
LEVEL = 0.95
MAX_CLUSTERS = 4_096  # images beyond that are resampled in as many groups, by the first digits of their sha256
MAX_TYPES = 24  # that are told apart; the rarer ones count in the row of all
MAX_RUNS = 24
_DIGITS = 3  # hexadecimal ones, of which there are `MAX_CLUSTERS` numbers
_MEANS = "avg(tokens), sum(seconds) / sum(number)"  # of an image; of an answer
RIGHT = 0.5  # an answer with this score or a higher one counts as right, where only right and wrong are told apart


@dataclass(frozen=True, kw_only=True)
class Run:
    """Answers at one budget to the same prompts: of the pruned artifact, or of a control."""

    selector: str
    budget: str  # as `--tokens` was given
    tokens: float  # that an image was shown with, on average over the images that were asked about
    seconds: float  # generation time of an answer, on average
    is_control: bool


@dataclass(frozen=True, kw_only=True)
class Point:
    """The accuracy of a run on prompts of one type, in percent, with its interval."""

    type: str | None  # None: of all types
    run: int
    prompts: int  # that are scored
    value: float
    low: float | None  # None: of one image
    high: float | None
    loss: float | None  # points below the reference run, on the prompts that both scored; None: it is that run, or none
    loss_low: float | None
    loss_high: float | None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What is known of the accuracy of all runs."""

    runs: Sequence[Run]  # the artifact's own, with the most tokens first, then the controls
    points: Sequence[Point]
    reference: int  # the run that losses are measured against: the one that saw the most tokens
    measure: str  # what is averaged
    images: int
    left_out: int  # types of prompts beyond `MAX_TYPES`

    @property
    def types(self) -> list[str | None]:
        """All types together, then those that have points."""
        return list(dict.fromkeys(point.type for point in self.points))

    @property
    def has_controls(self) -> bool:
        """Whether there is a control."""
        return any(run.is_control for run in self.runs)

    def of(self, run: int, kind: str | None = None) -> Point | None:
        """The point of a run, of one type or of all."""
        return next((point for point in self.points if point.run == run and point.type == kind), None)


def register_controls(
    db: duckdb.DuckDBPyConnection, answers: Sequence[str], controls: Sequence[str], selector: str
) -> list[str]:
    """Make the views `control_0`, ... of answers over other artifacts of the same corpus; returns their selectors.

    Args:
        db: a connection of `pipeline.report.query.connect`.
        answers: the outputs of answer jobs over the pruned artifact.
        controls: the outputs of answer jobs over artifacts pruned by another selector.
        selector: that of the pruned artifact.

    Raises:
        UserError: an output is none of an answer job, of another corpus, or of the same selector.
    """
    if controls and not answers:
        raise UserError(f"--control {controls[0]}: there is nothing to compare it with; give --answers too")
    corpus = _pruned_settings(Artifact(answers[0]), "--answers").get("corpus") if controls else None
    selectors = []
    for number, path in enumerate(controls):
        artifact = Artifact(path)
        pruned = _pruned_settings(artifact, "--control")
        if pruned.get("corpus") != corpus:
            raise UserError(f"--control {path}: it answers another corpus than --answers {answers[0]}; leave it out")
        if pruned.get("selector") == selector:
            raise UserError(
                f"--control {path}: its tokens were chosen by {selector} too, which is no control; "
                "give answers over an artifact of another --selector"
            )
        listed = artifact.listing()
        keys = [artifact.file_of(record, "answers", listed).path for record in artifact.checked_commits()]
        db.register(f"control_{number}", dataset_of(artifact.store, keys, ANSWERS))
        selectors.append(str(pruned.get("selector")))
    return selectors


def _pruned_settings(artifact: Artifact, option: str) -> dict[str, object]:
    settings: dict[str, object] = artifact.require_job("answer", option).settings["pruned"]
    return settings


def accuracy_of(
    db: duckdb.DuckDBPyConnection, selector: str, control_budgets: Sequence[tuple[str, str]], *, seed: int = 0
) -> Accuracy | None:
    """The accuracy of every run; None where there are no answers.

    Where no answer has a score, it is the share of answers that are, letter for letter, those at the most tokens.

    Args:
        db: a connection with `answers` and the views of `register_controls`.
        selector: of the pruned artifact.
        control_budgets: selector and `--tokens` of each control; those that share both are averaged.
        seed: of the resamples.

    Raises:
        UserError: there are more than `MAX_RUNS` of them.
    """
    own = [
        Run(selector=selector, budget=budget, tokens=tokens, seconds=seconds, is_control=False)
        for budget, tokens, seconds in db.sql(
            f"select budget, {_MEANS} from ({_of_images('budget', 'answers')}) group by budget order by 2 desc, 1 desc"
        ).fetchall()
    ]
    if not own:
        return None
    controls = list(dict.fromkeys(control_budgets))
    if len(own) + len(controls) > MAX_RUNS:
        raise UserError(f"{len(own) + len(controls)} sets of answers were named; a report shows up to {MAX_RUNS}")
    scored = db.sql("select count(score) > 0 from answers").fetchall()[0][0]
    names = db.sql("select string_agg(distinct metric, ', ' order by metric) from answers where score is not null")
    measure = (names.fetchall()[0][0] or "") if scored else "same answer as at the most tokens"
    parts = [
        f"select prompt_id, image_id, type, {number} as run, answer, score, tokens, seconds from answers "
        f"where budget = {quoted(run.budget)}"
        for number, run in enumerate(own)
    ]
    parts += [
        f"select prompt_id, image_id, type, {len(own) + controls.index(control)}, answer, score, tokens, seconds "
        f"from control_{number}"
        for number, control in enumerate(control_budgets)
    ]
    answered = " union all ".join(parts)
    runs = [*own, *_control_runs(db, answered, len(own), controls)]
    sums, types, images = _sums(db, answered, len(runs), scored)
    kinds = [None, *types[:MAX_TYPES]]
    points = []
    for place, kind in enumerate(kinds):
        chosen = sums.sum(0) if kind is None else sums[place - 1]
        points += _points(kind, chosen, seed)
    return Accuracy(
        runs=runs,
        points=points,
        reference=0,
        measure=measure,
        images=images,
        left_out=max(0, len(types) - MAX_TYPES),
    )


def _of_images(run: str, answers: str) -> str:
    """SQL of each image's tokens, the seconds that its answers took and their number, in each run."""
    what = "max(tokens) as tokens, sum(seconds) as seconds, count(*) as number"
    return f"select {run}, image_id, {what} from {answers} group by {run}, image_id"


def _control_runs(
    db: duckdb.DuckDBPyConnection, answered: str, first: int, controls: Sequence[tuple[str, str]]
) -> list[Run]:
    if not controls:
        return []
    of_images = _of_images("run", f"({answered}) where run >= {first}")
    means = db.sql(f"select run, {_MEANS} from ({of_images}) group by run order by run").fetchall()
    return [
        Run(selector=controls[run - first][0], budget=controls[run - first][1], tokens=tokens, seconds=seconds,
            is_control=True)
        for run, tokens, seconds in means
    ]  # fmt: skip


def _sums(db: duckdb.DuckDBPyConnection, answered: str, num_runs: int, scored: bool) -> tuple[Floats, list[str], int]:
    """Sums (types, 4, runs, clusters), the types with the most prompts first, and how many images.

    The four are: the sum of scores, their number, the sum of what a run loses against run 0, and the number of prompts
    that both have scored.
    """
    each = ", ".join(
        f"avg(score) filter (where run = {run}) as s{run}"
        if scored
        else f"avg((answer = theirs)::double) filter (where run = {run}) as s{run}"
        for run in range(num_runs)
    )
    beside = "" if scored else ", max(answer) filter (where run = 0) over (partition by prompt_id) as theirs"
    some = f"select distinct image_id from ({answered}){' where score is not null' if scored else ''}"
    images = int(db.sql(f"select count(*) from ({some})").fetchall()[0][0])
    cluster = "image_id" if images <= MAX_CLUSTERS else f"image_id[1:{_DIGITS}]"
    aggregates = ", ".join(
        f"coalesce(sum(s{run}), 0), count(s{run}), coalesce(sum(s0 - s{run}), 0), count(s0 - s{run})"
        for run in range(num_runs)
    )
    rows = db.sql(
        f"""
        with by_prompt as (
            select prompt_id, any_value(image_id) as image_id, coalesce(any_value(type), '-') as type, {each}
            from (select *{beside} from ({answered})) group by prompt_id
        )
        select type, {cluster} as cluster, {aggregates} from by_prompt group by 1, 2 order by 1, 2"""
    ).fetchall()
    counted: dict[str, int] = {}
    for kind, _, _, number, *_ in rows:
        counted[kind] = counted.get(kind, 0) + number
    types = sorted(counted, key=lambda kind: (-counted[kind], kind))
    clusters = sorted({row[1] for row in rows})
    type_at, cluster_at = ({name: place for place, name in enumerate(names)} for names in (types, clusters))
    sums = np.zeros((len(types), 4, num_runs, len(clusters)))
    for kind, cluster, *values in rows:
        sums[type_at[kind], :, :, cluster_at[cluster]] = np.asarray(values, float).reshape(num_runs, 4).T
    return sums, types, images


def _points(kind: str | None, sums: Floats, seed: int) -> list[Point]:
    """The points of all runs of one type; `sums` is (4, runs, clusters)."""
    asked = sums[1].sum(0) > 0
    if not asked.any():
        return []
    score, number, lost, paired = sums[:, :, asked]
    drawn = draws(int(asked.sum()), seed)
    value, loss = ratio(score, number, drawn), ratio(lost, paired, drawn)
    points = []
    for run in range(len(score)):
        if not number[run].any():
            continue
        is_compared = run > 0 and bool(paired[run].any())
        has_interval, compares_images = ((counts > 0).sum() > 1 for counts in (number[run], paired[run]))
        points.append(
            Point(
                type=kind,
                run=run,
                prompts=int(number[run].sum()),
                value=100 * value[0, run],
                low=100 * value[1, run] if has_interval else None,
                high=100 * value[2, run] if has_interval else None,
                loss=100 * loss[0, run] if is_compared else None,
                loss_low=100 * loss[1, run] if is_compared and compares_images else None,
                loss_high=100 * loss[2, run] if is_compared and compares_images else None,
            )
        )
    return points


def draws(clusters: int, seed: int) -> Floats:
    """How often each cluster is drawn in each resample (resamples, clusters)."""
    shares = np.full(clusters, 1 / clusters)
    return np.random.default_rng(seed).multinomial(clusters, shares, RESAMPLES).astype(np.float64)


def ratio(sums: Floats, numbers: Floats, drawn: Floats) -> Floats:
    """The ratio of each row's totals and its percentile interval (3, rows); NaN where nothing was counted.

    Args:
        sums: (rows, clusters).
        numbers: (rows, clusters).
        drawn: of `draws`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = sums.sum(1) / numbers.sum(1)
        resampled = (drawn @ sums.T) / (drawn @ numbers.T)  # NaN where a resample drew no cluster that counts
    interval = np.full((2, len(value)), np.nan)
    tail = 100 * (1 - LEVEL) / 2
    some = ~np.isnan(resampled).all(0)
    interval[:, some] = np.nanpercentile(resampled[:, some], [tail, 100 - tail], axis=0)
    return np.vstack([value, interval])
