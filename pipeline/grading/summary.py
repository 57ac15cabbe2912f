"""What the grades of an artifact come to: a line for each type of prompts and each measure of its metric."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.grading.intervals import ImageSums, estimates
from pipeline.grading.metrics import METRICS

COLUMNS = ("image_id", "type", "metric", "score", "counts")
_DIGITS = 6  # beyond them sums in another order differ
_ALL = "all"


@dataclass(frozen=True)
class SummaryLine:
    """One measure of the answers to prompts of one type."""

    type: str | None
    of_all: bool  # it is of the prompts of all types
    metric: str
    measure: str
    graded: int
    value: float
    low: float | None  # 95 % interval; None where there is one image
    high: float | None


@dataclass
class _Answers:
    graded: int = 0
    sums: ImageSums = field(default_factory=ImageSums)

    def add(self, image_id: str, score: float, counts: list[int] | None) -> None:
        self.graded += 1
        self.sums.add(image_id, score, counts or ())

    def lines(self, kind: str | None, metric: str, *, of_all: bool) -> Iterable[SummaryLine]:
        for measure, found in estimates(self.sums.array(), METRICS[metric].measures).items():
            yield SummaryLine(
                type=kind,
                of_all=of_all,
                metric=metric,
                measure=measure,
                graded=self.graded,
                value=round(found.value, _DIGITS),
                low=None if found.low is None else round(found.low, _DIGITS),
                high=None if found.high is None else round(found.high, _DIGITS),
            )


def summary_of(tables: Iterable[pa.Table]) -> list[SummaryLine]:
    """The lines of these grades; beside those of types also of all together, if one metric scored them all."""
    of_type: dict[tuple[str, str | None], _Answers] = {}
    of_metric: dict[str, _Answers] = {}
    for table in tables:
        for image_id, kind, metric, score, counts in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True):
            if score is not None:
                of_type.setdefault((metric, kind), _Answers()).add(image_id, score, counts)
                of_metric.setdefault(metric, _Answers()).add(image_id, score, counts)
    lines: list[SummaryLine] = []
    for metric, kind in sorted(of_type, key=lambda key: (key[1] is not None, key[1] or "", key[0])):
        lines += of_type[metric, kind].lines(kind, metric, of_all=False)
    if len(of_type) > 1 and len(of_metric) == 1:
        ((metric, together),) = of_metric.items()
        lines += together.lines(None, metric, of_all=True)
    return lines


def summary_table(lines: Iterable[SummaryLine]) -> pa.Table:
    """The lines as people read them: times 100, as scores are quoted."""
    rows = [
        {
            "type": _ALL if line.of_all else line.type or "-",
            "metric": line.metric,
            "measure": line.measure,
            "graded": line.graded,
            **{name: _hundredfold(getattr(line, name)) for name in ("value", "low", "high")},
        }
        for line in lines
    ]
    texts, numbers = ("type", "metric", "measure"), ("value", "low", "high")
    schema = pa.schema(
        [*((name, pa.string()) for name in texts), ("graded", pa.int64()), *((name, pa.float64()) for name in numbers)]
    )
    return pa.Table.from_pylist(rows, schema)


def _hundredfold(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)
