"""What choose_budget found, as its `choice.json` tells it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.storage.places import folder_at
from schemas.choice import BudgetTrial, Choice, Difference
from schemas.wording import clipped, counted

CHOICE = "choice.json"
MAX_ROWS = 40
_MAX_TEXT = 600


@dataclass(frozen=True)
class Verdict:
    """Its verdict, with what it was measured on."""

    choice: Choice
    selector: str  # of the pruned artifact

    @property
    def is_safe(self) -> bool:
        """Whether there is a budget that is safe."""
        return self.choice.chosen is not None

    @property
    def figure(self) -> str:
        """In a few words."""
        chosen = self._chosen
        return "no budget" if chosen is None else f"{chosen.mean_tokens:.4g} tokens"

    @property
    def sentences(self) -> list[str]:
        """What it says, the most important first, then what it was measured on."""
        sample = self.choice.sample
        said = [clipped(one, _MAX_TEXT) for one in self.choice.findings[:MAX_ROWS]]
        corpus = ", ".join(self.choice.corpus)
        said.append(
            f"Measured on {counted(sample.images, 'images')} with {counted(sample.prompts, 'prompts')} of "
            f"{clipped(corpus, _MAX_TEXT)}, with the model {clipped(self.choice.model, _MAX_TEXT)}."
        )
        if self.mismatch is not None:
            said.append(self.mismatch)
        return said

    @property
    def mismatch(self) -> str | None:
        """Why it says nothing about the pruned artifact, or None."""
        if self.choice.selector == self.selector:
            return None
        return (
            f"It tested tokens chosen by {clipped(self.choice.selector, _MAX_TEXT)}; this corpus was pruned by "
            f"{clipped(self.selector, _MAX_TEXT)}, of which it says nothing."
        )

    @property
    def columns(self) -> Sequence[str]:
        """Titles of the table."""
        return ("budget", "tokens an image", "score", "loss", "at most", "verdict", "controls")

    @property
    def rows(self) -> list[Sequence[str]]:
        """A row a budget."""
        percent = f"{100 * self.choice.confidence:g} %"
        rows: list[Sequence[str]] = [
            ("all", f"{self.choice.mean_tokens:.4g}", f"{self.choice.all_tokens:.2f}", "-", "-", "reference", "-")
        ]
        for one in self.choice.budgets[:MAX_ROWS]:
            controls = [
                f"{control.selector} loses {control.loss.points:.2f}{', does as well' if control.does_as_well else ''}"
                for control in one.controls[:MAX_ROWS]
            ]
            rows.append(
                (
                    one.tokens,
                    f"{one.mean_tokens:.4g}",
                    f"{one.score:.2f}",
                    _interval(one.loss),
                    f"{one.bound:.2f} ({percent})",
                    one.verdict,
                    "; ".join(controls) or "-",
                )
            )
        return rows

    @property
    def told(self) -> BudgetTrial | None:
        """The budget whose types are told: the one that is chosen, or the largest."""
        return self._chosen or next(iter(self.choice.budgets), None)

    @property
    def groups(self) -> list[Sequence[str]]:
        """What each type of prompts loses at that budget, the one that loses most first."""
        groups = self.told.groups if self.told is not None else ()
        return [
            (one.type or "-", one.metric, f"{one.prompts:,}", f"{one.all_tokens:.1f}", f"{one.score:.1f}",
             _interval(one.loss))
            for one in groups[:MAX_ROWS]
        ]  # fmt: skip

    @property
    def _chosen(self) -> BudgetTrial | None:
        return next((one for one in self.choice.budgets if one.tokens == self.choice.chosen), None)

    def chart(self) -> dict[str, Any]:
        """What the chart of losses draws."""
        points = []
        for one in self.choice.budgets[:MAX_ROWS]:
            points.append(_point(one, self.choice.selector, one.loss))
            points += [_point(one, control.selector, control.loss) for control in one.controls[:MAX_ROWS]]
        return {"tolerance": self.choice.tolerance, "points": points}


def _point(one: BudgetTrial, series: str, loss: Difference) -> dict[str, Any]:
    return {
        "series": series,
        "budget": one.tokens,
        "tokens": one.mean_tokens,
        "loss": loss.points,
        "low": loss.low,
        "high": loss.high,
    }


def _interval(one: Difference) -> str:
    return f"{one.points:.2f} [{one.low:.2f}, {one.high:.2f}]"


def read_verdict(folder: str, selector: str) -> Verdict:
    """The verdict in the output of a choose_budget job.

    Args:
        folder: that output.
        selector: of the pruned artifact that is reported on.

    Raises:
        UserError: there is none, or it is damaged.
    """
    store = folder_at(folder)
    try:
        text = store.read(CHOICE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"--choice {folder} holds no {CHOICE}; name the --output of a choose_budget job that has finished"
        ) from error
    try:
        return Verdict(Choice.model_validate_json(text), selector)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise UserError(
            f"{store.locate(CHOICE)}: {where}: {first['msg']}; it was altered, or another version wrote it: "
            "run choose_budget again"
        ) from error
