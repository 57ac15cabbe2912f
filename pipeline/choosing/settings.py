"""Settings of the job that chooses a budget."""

from typing import Annotated

from annotated_types import Gt, Le
from pydantic import AfterValidator

from pipeline.answer.settings import one_by_one
from pipeline.grading.grader import Grader, MetricTexts, parse_metrics
from pipeline.prune.settings import CorpusSettings, Estimator, Selector
from pipeline.settings import WORK, BudgetText, Count, Option

MEASURED = "what is measured"
BUDGETS = ("0.25", "0.125", "0.0625")


class ChooseSettings(CorpusSettings):
    """Everything it can be told."""

    sample: Annotated[
        Count, Option("images, drawn from the whole corpus by their sha256 and --seed", "N", MEASURED, decides=True)
    ] = 500
    tolerance: Annotated[
        float, Gt(0), Le(100), Option("points of the score that may be lost", "POINTS", MEASURED, decides=True)
    ] = 2.0
    tokens: Annotated[
        tuple[BudgetText, ...],
        Option(f"budgets to measure; repeatable; {', '.join(BUDGETS[:-1])} and {BUDGETS[-1]} without it",
               "COUNT|RATIO", MEASURED, decides=True),
    ] = ()  # fmt: skip
    selector: Annotated[
        Selector, Option("how tokens are chosen, compared with random and uniform_grid", "NAME", MEASURED, decides=True)
    ] = "zoo"
    estimator: Annotated[Estimator, Option("of the sensitivity", "NAME", MEASURED, decides=True)] = "closed_form"
    seed: Annotated[int, Option("of the sample, random estimators and selectors", "N", MEASURED, decides=True)] = 0
    max_new_tokens: Annotated[Count, Option("longest answer", "N", MEASURED, decides=True)] = 64
    metric: Annotated[
        MetricTexts,
        AfterValidator(one_by_one),
        Option("how answers are scored, as when answering; without references they are compared with the answers at "
               "all tokens", "[TYPE=]NAME", MEASURED, decides=True),
    ] = ()  # fmt: skip

    batch_size: Annotated[Count, Option("prompts a batch at most", "N", WORK, decides=True)] = 64
    shard_size: Annotated[Count, Option("images a worker answers at a time", "N", WORK, decides=True)] = 32

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets to measure, as they were written."""
        return self.tokens or BUDGETS

    @property
    def grader(self) -> Grader:
        """How answers with references are scored."""
        return parse_metrics(self.metric)
