"""Answer the prompts of a pruned corpus with the language model alone; no vision tower is loaded.

python -m jobs.answer_corpus --pruned out/scenes --model examples/tiny-llava --tokens 32 --output out/answers
"""

from pathlib import Path

from jobs.console import exit_status, input_path, output_path, parser, ray_address, run, say
from jobs.tables import print_table
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.cluster.device import DEVICES
from pipeline.report.query import connect
from pipeline.report.summary import accuracy

EXAMPLES = """examples:
  python -m jobs.answer_corpus --pruned out/scenes --model examples/tiny-llava --tokens 32 --output out/answers
  python -m jobs.answer_corpus --pruned out/scenes --model examples/tiny-llava --tokens all --output out/answers-all

The same pruned corpus serves every budget up to the one it was pruned with.
Run the same command again to resume; committed shards are skipped.
"""


def parse(arguments: list[str]) -> AnswerSettings:
    """The command line as settings."""
    options = parser(__doc__.split("\n\n")[0], EXAMPLES)
    add = options.add_argument
    add("--pruned", required=True, metavar="FOLDER", help="the output of jobs.prune_corpus")
    add("--model", required=True, metavar="PATH|ID", help="the checkpoint that pruned it")
    add("--output", required=True, metavar="FOLDER", help="where the answers lie; the same folder resumes")
    add("--tokens", default="all", metavar="COUNT|RATIO|all",
        help="visual tokens of an image the model sees (default: all that are stored)")  # fmt: skip
    add("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"),
        help="the model runs in (default: auto, the checkpoint's own)")  # fmt: skip
    add("--batch-size", type=int, default=32, metavar="N", help="prompts a batch (default: 32)")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer (default: 64)")
    add("--positions", choices=("compact", "original"),
        help="number kept tokens one after the other, or as before pruning (default: the family's own way, compact; "
        "Qwen-VL models always keep their place on the image's grid)")  # fmt: skip
    add("--workers", type=int, metavar="N", help="model actors (default: one a GPU, else one a CPU)")
    add("--gpus-per-worker", type=float, metavar="N",
        help="whole ones or a share of one (default: 1 where the cluster has GPUs, else 0)")  # fmt: skip
    add("--device", default="auto", choices=DEVICES,
        help="of the model (default: auto, CUDA on workers that have a GPU, else the CPU)")  # fmt: skip
    add("--retries", type=int, default=2, metavar="N", help="of a shard before it is given up (default: 2)")
    add("--shard-timeout", dest="shard_timeout_sec", type=float, default=3600, metavar="SEC",
        help="for one shard (default: 3600)")  # fmt: skip
    given = vars(options.parse_args(arguments))
    given["output"] = output_path(given["output"])
    given["pruned"] = input_path("--pruned", given["pruned"])
    return AnswerSettings(**given, ray_address=ray_address())


def main(arguments: list[str]) -> int:
    """Parse, answer, print the accuracy where there are references; the exit status."""
    settings = parse(arguments)
    result = answer_corpus(settings, say)
    if result.shards_done:
        say(f"answered {result.prompts:,} prompts in {result.shards_done:,} shards")
    if not (result.failures or result.stopped_by):
        say(f"the answers lie in {settings.output}")
    table = accuracy(connect(Path(settings.pruned), [Path(settings.output)]))
    if len(table):
        print_table(table, title="accuracy, %")
    return exit_status(result.failures, result.stopped_by)


if __name__ == "__main__":
    run(main)
