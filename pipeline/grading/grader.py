"""Which metric scores the answers to which prompts."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from pipeline.errors import UserError
from pipeline.grading.metrics import METRICS
from pipeline.grading.metrics.metric import Metric
from pipeline.settings import Text, named
from schemas.wording import counted

DEFAULT = "exact"


@dataclass(frozen=True)
class Grader:
    """Which metric scores the answers to prompts of which type. default: of the types that `by_type` does not name."""

    default: str = DEFAULT
    by_type: dict[str, str] = field(default_factory=dict)

    def metric(self, prompt_type: str | None) -> Metric:
        """The metric for prompts of this type."""
        return METRICS[self.by_type.get(prompt_type or "", self.default)]

    def score(self, answer: str, references: Sequence[str] | None, prompt_type: str | None) -> float | None:
        """The score of one answer, or None where there are fewer references than the metric takes.

        Not for metrics whose scores depend on all references (`over_corpus`).
        """
        metric = self.metric(prompt_type)
        assert metric.score is not None, "such a metric is refused where answers come one by one"
        return metric.score(answer, references) if references and metric.can_score(references) else None

    @property
    def over_corpus(self) -> list[str]:
        """The `--metric` texts of metrics that no answer can be scored by before all references are known."""
        texts = [(name, f"{kind}={name}") for kind, name in self.by_type.items()]
        return [text for name, text in [(self.default, self.default), *texts] if METRICS[name].corpus is not None]

    def check(
        self, most: Mapping[str | None, int], where: str, references: Callable[[str | None], Iterable[list[str]]]
    ) -> None:
        """Refuse metrics that have nothing to score.

        Args:
            most: the types of prompts that there are, with the largest number of references that one prompt has.
            where: what holds the prompts.
            references: those of each prompt of a type, for metrics that do not take any.

        Raises:
            UserError: a type that no prompt has, or of whose prompts none has as many references as the metric takes,
                or such as it takes.
        """
        there = sorted(kind for kind in most if kind is not None)
        for kind, name in sorted(self.by_type.items()):
            if kind not in most:
                raise UserError(
                    f"--metric {kind}={name}: {where} holds no prompt of type {kind}; "
                    + (f"its types are {', '.join(there)}" if there else "its prompts have no type")
                )
            prompts = f"no prompt of type {kind} in {where}"
            _check_references(f"{kind}={name}", name, most[kind], prompts, references(kind))
        rest = [kind for kind in most if kind not in self.by_type]
        if rest and self.default != DEFAULT:
            prompts = f"no {'other ' if self.by_type else ''}prompt in {where}"
            found = chain.from_iterable(map(references, rest))
            _check_references(self.default, self.default, max(most[kind] for kind in rest), prompts, found)


def _check_references(text: str, name: str, most: int, prompts: str, references: Iterable[list[str]]) -> None:
    metric = METRICS[name]
    least = metric.min_references
    if most < least:
        has = f"more than {most}" if most else "any"
        raise UserError(
            f"--metric {text}: {name} takes {counted(least, 'references')} a prompt or more, but {prompts} has {has}"
        )
    if metric.takes is not None and not any(map(metric.can_score, references)):
        raise UserError(f"--metric {text}: {name} is about {metric.about}, but {prompts} has a reference that says so")


def parse_metrics(texts: Sequence[str]) -> Grader:
    """The grader that texts such as "exact" and "caption=object_f1" describe; a later text overrules an earlier one.

    Raises:
        ValueError: a metric that there is not, or a type without a name; begins with the text.
    """
    default, by_type = DEFAULT, {}
    for text in texts:
        prompt_type, is_of_type, name = text.rpartition("=")
        if not name or (is_of_type and not prompt_type):
            raise ValueError(f"{text}: expected NAME or TYPE=NAME, with one of {', '.join(METRICS)} as NAME")
        if name not in METRICS:
            like = difflib.get_close_matches(name.lower().replace("-", "_"), METRICS, n=1)
            meant = f"did you mean {like[0]}?" if like else f"there are {', '.join(METRICS)}"
            raise ValueError(f"{text}: there is no metric {name}; {meant}")
        if is_of_type:
            by_type[prompt_type] = name
        else:
            default = name
    return Grader(default, by_type)


def _are_metrics(texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    try:
        parse_metrics(texts)
    except ValueError as error:
        raise UserError(f"{named(info)} {error}") from error
    return texts


MetricTexts = Annotated[tuple[Text, ...], AfterValidator(_are_metrics)]
METRIC_HELP = (
    f"how answers are scored, all or those to a type of prompts; one of {', '.join(METRICS)}; repeatable; "
    f"{DEFAULT} without it"
)
