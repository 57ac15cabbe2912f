"""Write the measured tables of README.md and docs/selectors.md from the committed results, none by hand.

python benchmarks/readme_figures.py            rewrite the blocks between the markers
python benchmarks/readme_figures.py --check    exit 1 when a text does not hold what the results say
"""

# ruff: noqa: E402
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(REPO)

import argparse
import json
from collections import defaultdict
from typing import Any

from benchmarks.comparison import ALL_TOKENS, BOTH, CAPTION, MARKS, ONE_WORD, POOLED, REFERENCE, Row, rows_of
from benchmarks.serving_tables import arithmetic_lines, gain_lines, leading_line

RESULTS = REPO / "benchmarks" / "results"
FIGURES, LOW_RANK, GAIN, ARITHMETIC = "figures", "low rank", "gain", "arithmetic"  # names of blocks
SELECTORS = ("zoo", "divprune", "feature_norm", "uniform_grid", "random")


class Table:
    """Rows of the models pooled, by split, kind, selector and number of tokens."""

    def __init__(self, result: dict[str, Any]) -> None:
        rows = [row for row in rows_of(result) if row.model == POOLED]
        self.cells: dict[tuple[str, str, str, int], Row] = {(r.split, r.kind, r.selector, r.tokens): r for r in rows}
        self.splits = [split for split in dict.fromkeys(row.split for row in rows) if split != BOTH]
        self.kinds = {split: list(dict.fromkeys(r.kind for r in rows if r.split == split)) for split in self.splits}
        self.selectors = [name for name in dict.fromkeys(row.selector for row in rows) if name != ALL_TOKENS]
        self.budgets = list(dict.fromkeys(row.tokens for row in rows if row.selector == REFERENCE))

    def full(self, split: str, kind: str) -> Row:
        """With all tokens."""
        return next(r for r in self.cells.values() if (r.split, r.kind, r.selector) == (split, kind, ALL_TOKENS))


def accuracy_lines(result: dict[str, Any]) -> list[str]:
    """Accuracy and cost on the bundled corpus, a table a split, a line a budget."""
    table = Table(result)
    cpu_ms = result["answers"]["cpu_ms_per_answer"]
    several = f", mean of {len(result['models'])} models" if len(result["models"]) > 1 else ""
    lines = [
        f"Accuracy (exact match, %{several}) on the one-word questions of the bundled corpus, and the processor time "
        "of an answer from stored features, against all tokens:",
    ]
    for split in table.splits:
        full = table.full(split, ONE_WORD)
        names = [name for name in SELECTORS if name in table.selectors]
        lines += [
            "",
            f"| {split}, {full.questions:,} questions | "
            + " | ".join(f"`{name}`" for name in names)
            + " | time to answer |",
            "|---|" + "---|" * (len(names) + 1),
            f"| all {full.tokens} tokens | {full.percent:.1f}" + " |" * len(names) + " 1 |",
        ]
        for tokens in table.budgets:
            rows = [table.cells[split, ONE_WORD, name, tokens] for name in names]
            levels = " | ".join(f"{row.percent:.1f} [{row.low:.1f}, {row.high:.1f}]" for row in rows)
            time = cpu_ms[str(tokens)] / cpu_ms[str(full.tokens)]
            lines.append(f"| {tokens} ({tokens / full.tokens:.4g}) | {levels} | {time:.2f} |")
    seeds = len(table.cells[table.splits[0], ONE_WORD, "random", table.budgets[0]].seeds or ())
    lines += ["", f"In brackets: 95 % bootstrap over images. `random`: mean of {seeds} seeds."]
    lines[-1] += "".join(f" {loss_sentence(table, split)}" for split in table.splits)
    lines[-1] += " Differences with their intervals, all selectors and captions: docs/selectors.md."
    return lines


def loss_sentence(table: Table, split: str) -> str:
    """The type of question that pruning by `zoo` costs most, at every budget."""
    losses = []
    for tokens in table.budgets:
        lost = {
            kind: table.full(split, kind).percent - table.cells[split, kind, REFERENCE, tokens].percent
            for kind in table.kinds[split]
            if kind not in (ONE_WORD, CAPTION)
        }
        worst = max(lost, key=lambda kind: lost[kind])
        losses.append(f"{tokens}: {lost[worst]:.1f} ({worst})")
    return f"Points that `{REFERENCE}` loses in the type of question that loses most, {split}: {', '.join(losses)}."


def selector_lines(result: dict[str, Any]) -> list[str]:
    """All selectors against `zoo`, a table a split and measure."""
    table = Table(result)
    models = " and ".join(f"`{name}`" for name in result["models"])
    lines = [
        f"`{command_of(result)}`: {models}, {result['images']:,} images; {result['equality']}. Points to "
        f"`{REFERENCE}` with their 95 % interval over images: + better, - worse, = no difference shown, * stands "
        "beside all others of its table (Holm).",
    ]
    for split in table.splits:
        for kind, measure in ((ONE_WORD, "exact match"), (CAPTION, "object F1")):
            if kind in table.kinds[split]:
                lines += ["", *difference_table(table, split, kind, measure)]
    return [*lines, "", chance_sentence(table), "", *agreement_sentence(result), *beaten_lines(result)]


def difference_table(table: Table, split: str, kind: str, measure: str) -> list[str]:
    """One line a selector, one column a budget."""
    full = table.full(split, kind)
    lines = [
        f"{split.capitalize()}, {full.questions:,} {kind} questions ({measure}); all {full.tokens} tokens "
        f"{full.percent:.1f} % [{full.low:.1f}, {full.high:.1f}]:",
        "",
        "| kept | " + " | ".join(map(str, table.budgets)) + " |",
        "|---|" + "---|" * len(table.budgets),
    ]
    for name in table.selectors:
        cells = []
        for tokens in table.budgets:
            row = table.cells.get((split, kind, name, tokens))
            if row is None:
                cells.append("")
            elif row.points is None:
                cells.append(f"{row.percent:.1f} %")
            else:
                mark = MARKS[row.verdict or ""] + "*" * bool(row.holm)
                cells.append(f"{row.points:+.1f} [{row.points_low:+.1f}, {row.points_high:+.1f}] {mark}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def chance_sentence(table: Table) -> str:
    """How many intervals are looked at."""
    shown = [row for row in table.cells.values() if row.split in table.splits and row.kind in (ONE_WORD, CAPTION)]
    compared = [row for row in shown if row.points is not None]
    different = sum(row.verdict != "equal" for row in compared)
    return (
        f"{len(compared)} intervals are looked at here, {different} of which exclude zero; of intervals about no "
        f"difference one in twenty would. {sum(bool(row.holm) for row in compared)} stand after Holm's correction."
    )


def agreement_sentence(result: dict[str, Any]) -> list[str]:
    """Whether the models by themselves say the same of one-word questions."""
    if len(result["models"]) < 2:
        return []
    verdicts: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for row in rows_of(result):
        if row.model != POOLED and row.split != BOTH and row.kind == ONE_WORD and row.verdict:
            verdicts[row.split, row.selector, row.tokens].add(row.verdict)
    agree = sum(len(found) == 1 for found in verdicts.values())
    contradict = sum({"better", "worse"} <= found for found in verdicts.values())
    return [
        f"Apart, the models give the same verdict on one-word questions in {agree} of {len(verdicts)} cells, and "
        f"opposite ones (better, worse) in {contradict}.",
        "",
    ]


def beaten_lines(result: dict[str, Any]) -> list[str]:
    """For each selector the rivals that beat it, of the models pooled."""
    lines = ["Beaten on one-word questions by, after Holm's correction over its rivals and budgets:", ""]
    for entry in result["beaten"]:
        if entry["model"] == POOLED and entry["kind"] == ONE_WORD and entry["split"] != BOTH:
            at = "; ".join(f"{tokens}: {', '.join(names)}" for tokens, names in entry["after_holm"].items())
            lines.append(f"* {entry['selector']}, {entry['split']}: {at or 'nothing at any budget'}")
    return lines


def speed_lines(tables: dict[str, Any]) -> list[str]:
    """What scoring and ranking cost at the shapes of real models."""
    where = tables["sensitivity"]["environment"]
    lines = [
        "Cost of the operations at real models' shapes, one image, random weights, float32, "
        f"{where['threads']} threads ({where['cpu']}):",
        "",
        "| | closed form | against the published estimator | in plain projections |",
        "|---|---|---|---|",
    ]
    for row in tables["sensitivity"]["rows"]:
        if row["dtype"] == "float32" and row["batch"] == 1:
            lines.append(
                f"| {row['shape']} | {row['closed_form_sec']:.2f} s | {row['literal_per_closed_form']:.0f}x faster | "
                f"{row['closed_form_per_projection']:.2f} |"
            )
    (rank,) = (row for row in tables["rank"]["rows"] if "published_in_parts_per_rank" in row)
    share, memory = tables["share"]["rows"][0], tables["memory"]["rows"][0]
    lines += [
        "",
        f"Ranking {rank['kept']} of {rank['tokens']} tokens takes {1000 * rank['rank_sec']:.0f} ms, "
        f"{rank['published_in_parts_per_rank']:.0f}x faster than the published form even when that gets its cosines in "
        f"blocks, and keeps the same tokens. Scoring and ranking cost {100 * share['share']:.1f} % of encoding the "
        f"same {share['batch']} images with a {share['tower']} tower, and {memory['one_group_peak_mb']:.0f} MB beyond "
        f"the features at {memory['tokens']:,} tokens.",
    ]
    return lines


def throughput_line(result: dict[str, Any]) -> str:
    """The pipeline against a bare loop, one and two workers."""
    runs, ratios = result["runs"], result["ratios"]
    return (
        f"Throughput on {result['settings']['images']:,} images, from the first model batch to the last commit: "
        f"{runs['pipeline, 1']['images_per_sec']:.1f} images/s with one worker, "
        f"{ratios['pipeline / bare, 1']:.2f} of a bare loop that writes the same files without Ray; with two workers "
        f"{ratios['pipeline / bare, 2']:.2f} of two bare loops side by side. Start-up "
        f"{runs['pipeline, 1']['start_up_sec']:.0f} s against {runs['bare, 1']['start_up_sec']:.0f} s."
    )


def soak_line(result: dict[str, Any]) -> str:
    """The last quarter of a long run against its first."""
    ratio = result["last_to_first"]
    return (
        f"Over {result['images']:,} images, last quarter against first: memory of the driver "
        f"{ratio['memory, driver']:.2f}, of the workers {ratio['memory, workers']:.2f}, time an image "
        f"{ratio['ms_an_image']:.2f}."
    )


def kills_line(result: dict[str, Any]) -> str:
    """What became of the killed runs."""
    victims = result["victims"].values()
    kills = ", ".join(f"{name} {victim['kills']}" for name, victim in result["victims"].items())
    return (
        f"SIGKILL at random moments of a {result['shards']}-shard run ({kills} times): "
        f"{sum(v['outputs_identical'] for v in victims)} of {sum(v['kills'] for v in victims)} outputs identical to an "
        f"undisturbed run's, byte for byte; {sum(v['rows_lost'] for v in victims)} rows lost, "
        f"{sum(v['rows_doubled'] for v in victims)} doubled."
    )


def gain_line(serving: dict[str, Any], selectors: dict[str, Any]) -> str:
    """What README.md leads with: times the answers, and the accuracy at about that share of tokens."""
    table = Table(selectors)
    full = {split: table.full(split, ONE_WORD) for split in table.splits}
    whole = full[table.splits[0]].tokens
    levels = {
        tokens: [
            f"{table.cells[split, ONE_WORD, REFERENCE, tokens].percent:.1f} % on {split} scenes "
            f"({full[split].percent:.1f} % with all)"
            for split in table.splits
        ]
        for tokens in table.budgets
    }
    return leading_line(serving, {tokens: tokens / whole for tokens in table.budgets}, levels)


def low_rank_lines(result: dict[str, Any]) -> list[str]:
    """What a projector of low rank changes, a line an estimate."""
    lines = [
        "| projector | estimate | value, of the exact | Spearman | `zoo` kept alike, % at 25 / 12.5 / 6.25 % | "
        "`sensitivity` kept alike |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        alike = [
            " / ".join(f"{100 * share:.0f}" for share in row[f"{selector}_kept_alike"].values())
            for selector in ("zoo", "sensitivity")
        ]
        figures = (f"{row['value_ratio']:.2f}", f"{row['spearman_mean']:.3f}", *alike)
        lines.append(f"| {' | '.join((row['projector'], row['estimate'], *figures))} |")
    return lines


def blocks() -> list[tuple[str, str, str]]:
    """Every measured block: the file it stands in, its name there, its text with the marks around it."""
    names = ("selectors", "ops", "throughput", "soak", "kills")
    others = ("low_rank", "serving")
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in (*names, *others)}
    commands = ", ".join(f"`{command_of(results[name])}`" for name in names)
    readme = [
        *accuracy_lines(results["selectors"]),
        "",
        *speed_lines(results["ops"]),
        "",
        f"* {throughput_line(results['throughput'])}",
        f"* {soak_line(results['soak'])}",
        f"* {kills_line(results['kills'])}",
        "",
        f"Made by {commands}; results in `benchmarks/results/`.",
    ]
    texts = (
        ("README.md", GAIN, [gain_line(results["serving"], results["selectors"])]),
        ("README.md", FIGURES, readme),
        ("docs/serving_gain.md", GAIN, gain_lines(results["serving"])),
        ("docs/serving_gain.md", ARITHMETIC, arithmetic_lines(results["serving"])),
        ("docs/selectors.md", FIGURES, selector_lines(results["selectors"])),
        ("docs/selectors.md", LOW_RANK, low_rank_lines(results["low_rank"])),
    )
    return [(file, name, marked(name, "\n".join(lines))) for file, name, lines in texts]


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind a block of that name."""
    return f"<!-- {name}: begin, by benchmarks/readme_figures.py -->", f"<!-- {name}: end -->"


def marked(name: str, text: str) -> str:
    """A block of that name."""
    begin, end = marks(name)
    return f"{begin}\n\n{text}\n\n{end}"


def command_of(result: dict[str, Any]) -> str:
    """The command a result came from."""
    part = result.get("sensitivity", result)  # ops.json holds tables, each from a run of its own
    return str(part["command"] if "command" in part else part["environment"]["command"])


def with_block(text: str, name: str, block: str) -> str:
    """A text with its block of that name replaced."""
    first, last = marks(name)
    begin, end = text.index(first), text.index(last) + len(last)
    return text[:begin] + block + text[end:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for file, name, block in blocks():
        path = REPO / file
        old = path.read_text()
        new = with_block(old, name, block)
        if old != new:
            stale.append(f"{file} ({name})")
            if not check:
                path.write_text(new)
    if check and stale:
        names = " and ".join(stale)
        print(f"{names}: not what the committed results say; run python benchmarks/readme_figures.py", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
