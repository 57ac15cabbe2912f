"""The report: one HTML file about a pruned corpus and answers over it, which asks nothing of any network.

Everything that a corpus, a model or a folder's name brings along is hostile: texts go through the template's escaping
alone, data through `tojson`, which leaves no way out of a script element, and the page's policy names the hashes of the
three scripts that may run.
"""

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import read_index
from pipeline.errors import UserError
from pipeline.report.accuracy import LEVEL, RIGHT, Accuracy, accuracy_of, register_controls
from pipeline.report.gallery import Gallery, make_gallery
from pipeline.report.kept import QUANTILES, Kept, images_in_words, in_words, kept_tokens
from pipeline.report.query import connect
from pipeline.report.rasters import seen_part
from pipeline.report.runs import Failed, JobRun, failed_inputs, job_run
from pipeline.report.settings import ReportSettings
from pipeline.report.verdict import Verdict, read_verdict
from pipeline.storage.places import at
from schemas.wording import clipped, clock, counted, visible

MAX_BYTES = 20_000_000
MAX_LABEL = 160  # characters of a name
MARK = "<!-- written by zoo-prune report -->"
_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "report.js")
_LICENSES = ("vendor/d3.LICENSE", "vendor/plot.LICENSE")
_MINUS = "\N{MINUS SIGN}"  # as wide as the plus
_DIGITS = 6  # significant ones of a number that a chart draws


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows."""

    title: str
    kept: Kept | None
    accuracy: Accuracy | None
    verdict: Verdict | None
    gallery: Gallery
    failed: Sequence[Failed]
    runs: Sequence[JobRun]  # the prune job first

    @property
    def num_failed(self) -> int:
        """Inputs that failed: rows of `errors`."""
        return sum(one.count for one in self.failed if not one.is_refusal)

    @property
    def num_refused(self) -> int:
        """Answers that were refused, each budget's."""
        return sum(one.count for one in self.failed if one.is_refusal)


@dataclass(frozen=True)
class Written:
    """What a run wrote."""

    address: str
    size_bytes: int
    images: int  # in the gallery


def write_report(settings: ReportSettings, say: Callable[[str], None]) -> Written:
    """Make the report and write it.

    Raises:
        UserError: bad input; nothing was written.
    """
    store, key = at(settings.output)
    if store.stat(key) is not None and not store.read(key)[:200].decode(errors="replace").count(MARK):
        raise UserError(f"--output {settings.output} holds something other than a report; name a new file")
    report = gather(settings, say)
    page = render(report)
    store.put(key, page)
    return Written(store.locate(key), len(page), len(report.gallery.cards))


def gather(settings: ReportSettings, say: Callable[[str], None]) -> Report:
    """Look everything up.

    Raises:
        UserError: a folder is no sound output of the job that it should be of.
    """
    pruned = Artifact(settings.pruned)
    job = pruned.require_job("prune", "--pruned")
    selector = str(job.settings.get("selector", "the selector"))
    verdict = read_verdict(settings.choice, selector) if settings.choice is not None else None
    db = connect(settings.pruned, settings.answers)
    say("reading what was kept and answered")
    selectors = register_controls(db, settings.answers, settings.control, selector)
    answering = [(path, Artifact(path)) for path in (*settings.answers, *settings.control)]
    jobs = [(path, artifact, artifact.require_job("answer", "--answers")) for path, artifact in answering]
    budgets = [str(one.settings["tokens"]) for _, _, one in jobs]
    controls = list(zip(selectors, budgets[len(settings.answers) :], strict=True))
    accuracy = accuracy_of(db, selector, controls)
    own = [run for run in accuracy.runs if not run.is_control] if accuracy is not None else []
    kept = kept_tokens(db, [(run.budget, run.tokens) for run in own], settings.seed)
    say("reading the pictures of the gallery")
    seen = seen_part(str(job.model.get("family")), job.environment.get("model"))
    gallery = make_gallery(db, settings.images, settings.seed, accuracy, read_index(pruned.store), seen, say)
    titles = [f"Answers at {budget}" for budget in budgets[: len(settings.answers)]]
    titles += [f"Control {name} at {budget}" for name, budget in controls]
    runs = [job_run(pruned, job, "Pruning")]
    runs += [job_run(artifact, one, title) for title, (_, artifact, one) in zip(titles, jobs, strict=True)]
    return Report(
        title=_name_of(pruned.address),
        kept=kept,
        accuracy=accuracy,
        verdict=verdict,
        gallery=gallery,
        failed=failed_inputs(db),
        runs=runs,
    )


def _name_of(address: str) -> str:
    return address.rstrip("/").rpartition("/")[2] or address


def render(report: Report) -> bytes:
    """The page. The same report gives the same bytes."""
    loader = jinja2.PackageLoader("pipeline.report", "page")
    templates = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def file(name: str) -> str:
        return loader.get_source(templates, name)[0]

    templates.filters.update(
        visible=visible,
        label=_label,
        tokens=_tokens,
        shown=_shown,
        percent=_percent,
        points=_points,
        seconds=_seconds,
        size=_size,
    )
    scripts = [file(name) for name in _SCRIPTS]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    page = templates.get_template("report.html.j2").render(
        report=report,
        mark=Markup(MARK),
        hashes=hashes,
        scripts=[Markup(text) for text in scripts],
        style=Markup(file("report.css")),
        licenses=[file(name) for name in _LICENSES],
        charts=charts(report),
        drawings=[card.drawing() for card in report.gallery.cards],
        level=round(100 * LEVEL),
        right=RIGHT,
        in_words=in_words,
        images_in_words=images_in_words,
        percents=_plain_interval,
        counted=counted,
        cost=_cost(report.accuracy),
    )
    data = page.encode()
    if len(data) > MAX_BYTES:
        raise RuntimeError(f"the report takes {len(data):,} bytes; its parts are bounded to give at most {MAX_BYTES:,}")
    return data


def _cost(accuracy: Accuracy | None) -> dict[str, Any] | None:
    """What the first screen says of the price of the smallest budget that was answered."""
    own = [number for number, run in enumerate(accuracy.runs) if not run.is_control] if accuracy is not None else []
    if accuracy is None or not own:
        return None
    points = [(accuracy.runs[number], accuracy.of(number)) for number in own]
    rows = [(run, point) for run, point in points if point is not None]
    compared = [(run, point) for run, point in rows if point.loss is not None]
    return {"rows": rows, "smallest": compared[-1] if compared else None, "reference": rows[0]} if rows else None


def charts(report: Report) -> dict[str, Any]:
    """The data of the charts: numbers, and the names of types, budgets and selectors."""
    return _plain(
        {
            "accuracy": _accuracy_data(report.accuracy),
            "kept": _kept_data(report.kept),
            "stages": [
                {"job": _label(run.title), "stage": stage, "seconds": seconds}
                for run in report.runs
                for stage, seconds in run.stages.items()
            ],
            "verdict": report.verdict.chart() if report.verdict is not None else None,
        }
    )


def _accuracy_data(accuracy: Accuracy | None) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    rows = []
    for point in accuracy.points:
        run = accuracy.runs[point.run]
        rows.append(
            {
                "type": None if point.type is None else _label(point.type),
                "series": _label(run.selector),
                "budget": _label(run.budget),
                "tokens": run.tokens,
                "control": run.is_control,
                "value": point.value,
                "low": point.low,
                "high": point.high,
                "loss": point.loss,
                "lossLow": point.loss_low,
                "lossHigh": point.loss_high,
                "prompts": point.prompts,
            }
        )
    return {"points": rows, "runs": [_label(run.budget) for run in accuracy.runs if not run.is_control]}


def _kept_data(kept: Kept | None) -> dict[str, Any] | None:
    if kept is None:
        return None
    histogram, gains = kept.sensitivity, kept.gains
    return {
        "levels": [{"name": one.name, "share": one.share, "rate": one.rate_RC.tolist()} for one in kept.levels],
        "sensitivity": None
        if histogram is None
        else {
            "edges": histogram.edges.tolist(),
            "all": histogram.all_tokens.tolist(),
            "picked": histogram.picked.tolist(),
            "name": histogram.picked_name,
            "log": histogram.is_log,
        },
        "gains": None
        if gains is None
        else {"picks": list(gains.picks), "quantiles": gains.quantiles_PQ.tolist(), "names": list(QUANTILES)},
    }


def _plain(value: Any) -> Any:
    """The value with numbers cut to what can be seen, and null for those that are not finite: JSON has none."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def _label(text: str) -> str:
    """A name in one line."""
    return visible(clipped(text, MAX_LABEL))


def _tokens(budget: str) -> str:
    """A budget as `--tokens` was given, in words: `64 tokens`, `0.125 of the tokens`."""
    shown = _label(budget)
    if budget == "all" or budget.isdigit():
        return f"{shown} tokens"
    return f"{shown} of the tokens" if budget.replace(".", "", 1).isdigit() else shown


def _shown(text: str) -> str:
    """A text of several lines, each of which does nothing to what stands around it."""
    return "\n".join(visible(line) for line in text.split("\n"))


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f} %"


def _plain_interval(low: float | None, high: float | None) -> str:
    """An interval of percents; of a single image there is none."""
    return "[of one image]" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"


def _points(value: float | None) -> str:
    """A difference with its sign."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{abs(value):.1f}"
    sign = "" if float(text) == 0 else _MINUS if value < 0 else "+"
    return f"{sign}{text}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else clock(value)


def _size(value: int) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value} bytes"
