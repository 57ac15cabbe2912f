"""Grade zoo-prune's answers to an exported task by lmms-eval's own code. Runs in lmms-eval's environment.

python examples/lmms_eval/grade.py --corpus out/pope --answers out/pope-run/answers-64 \\
    --grades out/pope-run/grades-64 --output out/pope-run/lmms-eval-64

Exits with 0, with 1 where lmms-eval's grades differ from --grades, with 2 where nothing could be graded.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from comparing import Comparison, compare
from exchange import EXIT_REFUSED, SHOWN, Answers, Export, Refusal, read_answers, read_corpus, read_grades

EXIT_DIFFERENT = 1
RESULT = "result.json"


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--corpus", required=True, type=Path, metavar="FOLDER", help="the output of export.py")
    options.add_argument("--answers", required=True, type=Path, metavar="FOLDER", help="of zoo-prune answer")
    options.add_argument("--grades", type=Path, metavar="FOLDER", help="of zoo-prune grade, to compare with")
    options.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="for the result, and submissions")
    options.add_argument("--compare", metavar="METRIC", help="lmms-eval's metric that --grades are compared with")
    options.add_argument(
        "--skip-missing", action="store_true", help="grade the prompts that have an answer where some have none"
    )
    return options


def check_missing(answers: Answers, export: Export, skip: bool) -> None:
    """Say which prompts have no answer.

    Raises:
        Refusal: some have none and are not to be skipped.
    """
    if not answers.missing:
        return
    shown = "; ".join(f"{prompt_id} ({why})" for prompt_id, why in list(answers.missing.items())[:SHOWN])
    told = f"{len(answers.missing):,} of {len(export.prompts):,} prompts of {export.name} have no answer: {shown}"
    more = len(answers.missing) - SHOWN
    told += f", and {more:,} more" if more > 0 else ""
    if not skip:
        raise Refusal(f"{told}; nothing was graded, --skip-missing grades the others")
    if not answers.by_prompt:
        raise Refusal(f"{told}; there is nothing to grade")
    print(f"{told}; they are not graded", file=sys.stderr)


def main() -> int:
    """Grade and compare; the exit status."""
    told = parser().parse_args()
    export = read_corpus(told.corpus)
    answers = read_answers(told.answers, export)
    grades = None if told.grades is None else read_grades(told.grades, export)
    check_missing(answers, export, told.skip_missing)
    from tasks import grade, load_task, quiet, version  # here: importing lmms-eval takes ten seconds

    quiet()
    task = load_task(export.name, export.task["include_path"], export.task["model_name"])
    told.output.mkdir(parents=True, exist_ok=True)
    found = grade(task, export, answers.by_prompt, told.output)
    comparison = None if grades is None else compare(found["samples"], found["totals"], grades, told.compare)
    result = {
        "task": export.name,
        "lmms_eval": version(),
        "answers": str(told.answers),
        "prompts": len(export.prompts),
        "graded": len(found["samples"]),
        "missing": answers.missing,
        "metrics": found["totals"],
        **({} if comparison is None else compared(comparison)),
    }
    (told.output / RESULT).write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    show(result, answers, export)
    return EXIT_DIFFERENT if comparison is not None and not comparison.equal else 0


def compared(comparison: Comparison) -> dict[str, Any]:
    """A comparison as the result has it."""
    return {
        "zoo_prune_metric": comparison.metric,
        "compared": {
            name: {"measure": measure, "lmms_eval": there, "zoo_prune": here}
            for measure, (name, there, here) in comparison.measures.items()
        },
        "differences": {
            prompt_id: {"lmms_eval": there, "zoo_prune": here}
            for prompt_id, (there, here) in sorted(comparison.differences.items())
        },
        "equal": comparison.equal,
    }


def show(result: dict[str, Any], answers: Answers, export: Export) -> None:
    """Print a result."""
    of = f"{result['graded']:,} of {result['prompts']:,} prompts"
    print(f"{result['task']}: {of} graded by lmms-eval {result['lmms_eval']}")
    for name, value in result["metrics"].items():
        shown = f"{value:.6f}" if isinstance(value, int | float) else "-"
        print(f"  {name:24} {shown:>10}{_beside(result, name)}")
    if "equal" not in result:
        return
    if result["equal"]:
        print(f"all {result['graded']:,} answers have the same grade with both")
        return
    print(f"{len(result['differences']):,} of {result['graded']:,} answers have another grade with zoo-prune:")
    for prompt_id, scores in result["differences"].items():
        references = " | ".join(dict.fromkeys(export.prompts[prompt_id].references)) or "none"
        ours = "no score" if scores["zoo_prune"] is None else f"{scores['zoo_prune']:g}"
        print(
            f"  {prompt_id}: lmms-eval {scores['lmms_eval']:g}, zoo-prune {ours}; "
            f"answer {answers.by_prompt[prompt_id]!r:.80}, references {references!r:.120}"
        )


def _beside(result: dict[str, Any], name: str) -> str:
    ours = result.get("compared", {}).get(name)
    if ours is None:
        return ""
    return f"   zoo-prune grade: {ours['zoo_prune']:.6f} ({result['zoo_prune_metric']} {ours['measure']})"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
