"""A task of lmms-eval as a corpus for zoo-prune. Runs in lmms-eval's environment.

python examples/lmms_eval/export.py --task pope --output out/pope
"""

import argparse
import sys
from pathlib import Path

from exchange import EXIT_REFUSED, MANIFEST, Refusal, write_corpus


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--task", required=True, help="its name with lmms-eval, such as pope, gqa or textvqa_val")
    options.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="where the corpus goes")
    options.add_argument("--include-path", metavar="FOLDER", help="tasks of your own in place of lmms-eval's")
    options.add_argument("--model-name", help="whose prompts are taken, of those that the task has for models")
    options.add_argument("--references", metavar="COLUMN|none", help="where they are, if doc_to_target does not tell")
    options.add_argument("--limit", type=int, metavar="N", help="the first documents alone")
    return options


def main() -> None:
    """Export the task; says what there is of it."""
    told = parser().parse_args()
    from tasks import load_task, quiet, requests_of, split_of, version  # here: importing lmms-eval takes ten seconds

    quiet()
    include = None if told.include_path is None else str(Path(told.include_path).absolute())
    task = load_task(told.task, include, told.model_name)
    whole = write_corpus(
        told.output,
        {
            "task": told.task,
            "split": split_of(task),
            "documents": len(task.eval_docs),
            "generation_kwargs": task.config.generation_kwargs,
            "include_path": include,
            "lmms_eval": version(),
            "model_name": told.model_name,
            "references": told.references,
        },
        requests_of(task, told.references, told.limit),
    )
    only = "" if whole["exported"] == whole["documents"] else f", the first of {whole['documents']:,}"
    print(f"{told.task}: {whole['exported']:,} prompts{only} about {whole['images']:,} images")
    print(f"the corpus is {told.output / MANIFEST}")


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
