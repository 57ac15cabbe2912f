"""What `--plan` tells people."""

from typing import TYPE_CHECKING

from pipeline.corpus.reading import refused_columns
from pipeline.prune.settings import PruneSettings
from schemas.wording import clock, counted

if TYPE_CHECKING:
    from pipeline.prune.forecast import Forecast

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
MAX_TOLD = 5  # inputs that can't be read


def size_text(size_bytes: float) -> str:
    """`13.4 GB`, in powers of 1000."""
    unit = 0
    while size_bytes >= 999.5 and unit < len(_UNITS) - 1:
        size_bytes, unit = size_bytes / 1000, unit + 1
    return f"{size_bytes:.3g} {_UNITS[unit]}"


def lines_of(settings: PruneSettings, found: "Forecast", command: str) -> list[str]:
    """The plan, a fact a line."""
    return [
        f"plan of {settings.output} (nothing was written)",
        *_corpus(settings, found),
        "",
        *_output(settings, found),
        "",
        *_work(settings, found),
        "",
        "the command:",
        f"  {command}",
    ]


def _corpus(settings: PruneSettings, found: "Forecast") -> list[str]:
    census, total = found.census, found.census.total
    about, most = ("", "") if census.whole else ("about ", "at most ")
    looked = "all of them" if census.whole else counted(round(census.seen.samples), "samples")
    lines = [
        f"corpus   {about}{counted(round(total.samples), 'samples')}, "
        f"{most}{counted(round(total.images), 'distinct images')}, {about}{counted(round(total.prompts), 'prompts')}",
        f"         by a look at {looked}"
        + ("" if census.whole else "; images repeated far apart are seen by --plan-sample 0 alone"),
    ]
    lines += [f"note     {note}" for note in found.notes]
    bad = sorted(total.failed.items(), key=lambda one: -one[1])
    lines += [f"bad      {about}{count:,.0f} {reason}" for reason, count in bad]
    if total.failed_samples > settings.max_error_rate * total.samples:
        lines.append(f"stop     more samples than --max-error-rate {settings.max_error_rate:g} fail: the job stops")
    missing = settings.reading.nowhere(census.records, census.named)
    is_all = census.whole and settings.limit is None
    if missing and is_all:
        lines.append(f"stop     {refused_columns(settings.reading, missing)}")
    elif (note := settings.reading.columns_note(census.records, census.named)) is not None:
        lines.append(f"columns  {note}")
    for pair in census.pairs:
        if pair.is_wrong and is_all:
            lines.append(f"stop     {pair.refusal()}")
        elif (note := pair.note()) is not None:
            lines.append(f"answers  {note}")
    for reason, count in found.measured.failed.items():
        lines.append(f"bad      {count:,} of {found.measured.images + count:,} images that were tried: {reason}")
    lines += [f"left out {why}" for why in list(census.unread.values())[:MAX_TOLD]]
    if len(census.unread) > MAX_TOLD:
        lines.append(f"left out {counted(len(census.unread) - MAX_TOLD, 'more inputs')}")
    return lines


def _output(settings: PruneSettings, found: "Forecast") -> list[str]:
    parts = ", ".join(f"{size_text(size)} {name}" for name, size in found.parts.items() if size)
    there = f", {found.shards_there:,} of them there already" if found.shards_there else ""
    lines = [
        f"output   {size_text(found.size_bytes)} in {counted(found.shards, 'shards')}{there}: {parts}",
        f"block    {size_text(found.block_bytes)} at most between two stages: the {found.block} of a shard",
        f"tokens   {found.tokens:.4g} an image",
        "bytes of the output by --feature-dtype and --max-tokens:",
    ]
    budgets = list(next(iter(found.table.values())))
    rows = [["", *budgets], *([dtype, *map(size_text, sizes.values())] for dtype, sizes in found.table.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for dtype, *cells in rows:
        line = "  ".join([dtype.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])
        lines.append(f"  {line.rstrip()}")
    return [*lines, "  (none: --features none; bfloat16 takes what float16 takes)"]


def _work(settings: PruneSettings, found: "Forecast") -> list[str]:
    measured = found.measured
    each = ", ".join(f"{stage} {1000 * sec:.3g}" for stage, sec in measured.seconds.items())
    batch = f"in batches of {measured.batch_size}"
    if settings.batch_size == "auto":
        batch += ", where the job will measure the best size"
    workers = counted(found.workers, "workers")
    return [
        f"time     ms an image, {counted(measured.images, 'images')} {batch} on {measured.device} here: {each}",
        f"         {found.worker_hours:.3g} worker hours, and {found.cpu_hours:.3g} processor hours beside them",
        f"         {clock(found.wall_sec)} with {workers} and {counted(found.cpus, 'processors')} as here; start-up "
        "and waiting for storage come on top",
        f"limit    {found.limit}; {size_text(found.size_bytes / found.wall_sec)} a second are written then",
    ]
