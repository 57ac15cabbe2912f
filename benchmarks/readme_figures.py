"""Write the measured tables of README.md from the committed results, so that no figure there is typed by hand.

python benchmarks/readme_figures.py            rewrite the block between the markers
python benchmarks/readme_figures.py --check    exit 1 when README.md does not hold what the results say
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "benchmarks" / "results"
BEGIN, END = "<!-- figures: begin, by benchmarks/readme_figures.py -->", "<!-- figures: end -->"
SELECTORS = ("zoo", "divprune", "feature_norm", "random")


def accuracy_lines(result: dict[str, Any]) -> list[str]:
    """Accuracy and cost on the bundled corpus, a line a budget."""
    rows = {(row["selector"], row["ratio"]): row for row in result["rows"]}
    full = rows["all tokens", 1.0]
    ratios = sorted({ratio for _, ratio in rows if ratio < 1}, reverse=True)
    lines = [
        f"Accuracy (exact match, %) on the {full['questions']:,} one-word questions of the bundled corpus, and the "
        "processor time to answer them from stored features, against all 256 tokens:",
        "",
        "| visual tokens | " + " | ".join(f"`{name}`" for name in SELECTORS) + " | time to answer |",
        "|---|" + "---|" * (len(SELECTORS) + 1),
        f"| all 256 | {full['accuracy']:.1f}" + " |" * len(SELECTORS) + " 1 |",
    ]
    for ratio in ratios:
        cells = []
        for name in SELECTORS:
            row = rows[name, ratio]
            cells.append(f"{row['accuracy']:.1f} [{row['interval'][0]:.1f}, {row['interval'][1]:.1f}]")
        cost = rows["zoo", ratio]["answer_cpu_seconds"] / full["answer_cpu_seconds"]
        lines.append(f"| {round(256 * ratio)} ({ratio:.4g}) | " + " | ".join(cells) + f" | {cost:.2f} |")
    seeds = rows["random", ratios[0]]["seeds"]
    types = [rows["zoo", ratio]["per_type"] for ratio in ratios]
    counting = [of_type["count"] for of_type in types]
    others = [value for of_type in types for name, value in of_type.items() if name not in ("count", "caption")]
    lines += [
        "",
        f"In brackets: 95 % bootstrap over images. `random`: mean of {seeds} seeds. What `zoo` loses is counting: "
        f"{full['per_type']['count']:.0f} % with all tokens, {min(counting):.0f} to {max(counting):.0f} % pruned; no "
        f"other type of question falls below {int(min(others))} %. Why, and all selectors: docs/selectors.md.",
    ]
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


def block() -> str:
    """The text between the markers."""
    names = ("selectors", "ops", "throughput", "soak", "kills")
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
    commands = ", ".join(f"`{command_of(result)}`" for result in results.values())
    return "\n".join(
        [
            *(BEGIN, ""),
            *accuracy_lines(results["selectors"]),
            "",
            *speed_lines(results["ops"]),
            "",
            f"* {throughput_line(results['throughput'])}",
            f"* {soak_line(results['soak'])}",
            f"* {kills_line(results['kills'])}",
            "",
            f"Made by {commands}; results in `benchmarks/results/`.",
            *("", END),
        ]
    )


def command_of(result: dict[str, Any]) -> str:
    """The command a result came from."""
    part = result.get("sensitivity", result)  # ops.json holds tables, each from a run of its own
    return str(part["command"] if "command" in part else part["environment"]["command"])


def with_block(readme: str) -> str:
    """README text with the block replaced."""
    begin, end = readme.index(BEGIN), readme.index(END) + len(END)
    return readme[:begin] + block() + readme[end:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = REPO / "README.md"
    old = path.read_text()
    new = with_block(old)
    if check:
        if old != new:
            print(
                "README.md does not hold the committed results; run python benchmarks/readme_figures.py",
                file=sys.stderr,
            )
        return int(old != new)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
