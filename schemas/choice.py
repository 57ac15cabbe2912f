"""`choice.json`: what pruning costs on a sample of a corpus, and which budget is safe. Scores and losses are points."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal["safe", "not safe", "not tested"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(_Record):
    """A mean over prompts of a difference of scores, with its interval."""

    points: float
    low: float
    high: float


class GroupLoss(_Record):
    """What the prompts of one type, scored by one metric, lose."""

    type: str | None
    metric: str
    prompts: int
    images: int
    all_tokens: float  # score
    score: float
    loss: Difference


class ControlTrial(_Record):
    """How a selector that looks at nothing fares at the same budget."""

    selector: str
    seeds: int
    score: float
    loss: Difference
    bound: float  # as of the budget
    ahead: Difference  # of the chosen selector
    does_as_well: bool  # the interval of `ahead` does not lie above zero


class BudgetTrial(_Record):
    """One budget, tried."""

    tokens: str  # as it was asked for
    mean_tokens: float  # of an image
    score: float
    loss: Difference  # against all tokens
    bound: float  # the loss is at most that, with `Choice.confidence`
    verdict: Verdict  # by `bound`; not tested: behind a larger budget that is not safe
    images_to_settle: int | None  # of a sample that would tell safe from not safe; None: it is settled, or none would
    groups: tuple[GroupLoss, ...]
    controls: tuple[ControlTrial, ...]


class Sampled(_Record):
    """What was measured on."""

    asked: int  # images
    seed: int
    images: int
    prompts: int  # that count
    refused: int  # that do not: the model can't take them, with all tokens or with fewer
    without_references: int  # that do not count, because others have references
    unscored: int = 0  # that do not count: they have references, but none that their metric takes
    metrics: tuple[str, ...]


class Choice(_Record):
    """The outcome."""

    version: Literal[1] = 1
    corpus: tuple[str, ...]
    model: str
    selector: str
    tolerance: float
    confidence: float
    sample: Sampled
    all_tokens: float  # score with all tokens
    mean_tokens: float  # that images have
    budgets: tuple[BudgetTrial, ...]  # the largest first, in which order they are tested
    chosen: str | None  # `tokens` of the smallest safe budget
    findings: tuple[str, ...]  # the same in sentences
