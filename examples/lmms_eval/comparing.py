"""lmms-eval's grades of a task's answers against zoo-prune's: prompt by prompt, and what they come to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exchange import Grades, Refusal

# Of our metric: lmms-eval's metric of each of its measures. The first is also the one of a single answer.
PARTNERS = {
    "exact": {"mean": "exact_match"},
    "gqa": {"mean": "exact_match"},
    "textvqa": {"mean": "exact_match"},
    "pope": {"accuracy": "pope_accuracy", "f1": "pope_f1_score"},
}
ROUNDED = 1e-6  # our manifests hold six digits


@dataclass(frozen=True)
class Comparison:
    """What the two say of the same answers."""

    metric: str  # ours
    measures: dict[str, tuple[str, float, float]]  # ours: its name with lmms-eval, its value there and here
    differences: dict[str, tuple[float, float | None]]  # scores there and here, by prompt id
    graded: int

    @property
    def equal(self) -> bool:
        """Whether all scores and what they come to are the same."""
        return not self.differences and all(_same(there, here) for _, there, here in self.measures.values())


def compare(
    theirs: Mapping[str, Mapping[str, Any]], totals: Mapping[str, Any], ours: Grades, partner: str | None = None
) -> Comparison:
    """Compare the grades of the same answers.

    Args:
        theirs: what lmms-eval's `process_results` says of each answer, by prompt id.
        totals: its metrics of them all.
        ours: grades of them, by zoo-prune.
        partner: lmms-eval's metric that is meant to be ours, where `PARTNERS` has none.

    Raises:
        Refusal: no metric of lmms-eval's is known to be ours, or the task has none of that name.
    """
    partners = PARTNERS.get(ours.metric, {}) if partner is None else {next(iter(ours.measures), "mean"): partner}
    if not partners:
        raise Refusal(
            f"--grades by {ours.metric}: it is not known which metric of lmms-eval's that is; say so by "
            f"--compare METRIC, with one of {', '.join(totals)}"
        )
    for name in partners.values():
        if name not in totals:
            raise Refusal(
                f"--grades by {ours.metric} are compared with lmms-eval's {name}, but the task has only "
                f"{', '.join(totals)}; grade by another metric, or name its partner by --compare METRIC"
            )
    single = next(iter(partners.values()))
    differences = {}
    for prompt_id, results in theirs.items():
        there, here = _score_of(results[single]), ours.score.get(prompt_id)
        if here is None or not _same(there, here):
            differences[prompt_id] = (there, here)
    measures = {
        measure: (name, float(totals[name]), ours.measures[measure])
        for measure, name in partners.items()
        if measure in ours.measures
    }
    return Comparison(ours.metric, measures, differences, len(theirs))


def _score_of(result: Any) -> float:
    """The score of one answer: a number, or what a task that keeps more of it calls so."""
    return float(result["score"] if isinstance(result, Mapping) else result)


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= ROUNDED
