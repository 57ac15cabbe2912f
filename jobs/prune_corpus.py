"""Prune a corpus: encode every distinct image once, rank its visual tokens, store the ranking and the kept features.

python -m jobs.prune_corpus --corpus "shards/{000000..000099}.tar" --model llava-hf/llava-1.5-7b-hf --output out
ray job submit --working-dir . -- python jobs/prune_corpus.py --corpus "/data/*.tar" --model ... --output /data/out
"""

from jobs.console import exit_status, output_path, parser, ray_address, run, say
from pipeline.artifact.payload import FEATURE_DTYPES
from pipeline.cluster.device import DEVICES
from pipeline.prune.job import PruneSettings, prune_corpus
from zoo_ops import ESTIMATORS, SELECTORS

EXAMPLES = """examples:
  python -m jobs.prune_corpus --corpus "examples/scenes/scenes-{000000..000002}.tar" \\
      --model examples/tiny-llava --output out/scenes --max-tokens 64
  python -m jobs.prune_corpus --corpus photos.jsonl --model llava-hf/llava-1.5-7b-hf --output out/photos \\
      --max-tokens 0.25 --feature-dtype int8 --features both
  ray job submit --working-dir . -- python jobs/prune_corpus.py --corpus "/data/*.tar" \\
      --model llava-hf/llava-1.5-7b-hf --output /data/pruned

Run the same command again to resume; committed shards are skipped. To enlarge a corpus, name the new files too.
"""


def parse(arguments: list[str]) -> PruneSettings:
    """The command line as settings."""
    options = parser(__doc__.split("\n\n")[0], EXAMPLES)
    add = options.add_argument
    add("--corpus", action="append", required=True, metavar="PATTERN",
        help="WebDataset tars or a JSONL manifest; braces and globs; repeatable")  # fmt: skip
    add("--model", required=True, metavar="PATH|ID", help="checkpoint folder or hub id")
    add("--output", required=True, metavar="FOLDER", help="where the artifact lies; the same folder resumes")
    add = options.add_argument_group("what is selected").add_argument
    add("--max-tokens", default="64", metavar="COUNT|RATIO|all",
        help="tokens kept of an image: 64, 0.125 or all (default: 64); smaller budgets can be read later")  # fmt: skip
    add("--selector", default="zoo", choices=SELECTORS, help="default: zoo")
    add("--estimator", default="closed_form", choices=ESTIMATORS,
        help="of the sensitivity (default: closed_form, exact)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of random estimators and selectors (default: 0)")
    add("--limit", type=int, metavar="N", help="take only the first N samples of the corpus")
    add = options.add_argument_group("what is written").add_argument
    add("--features", default="webdataset", choices=("webdataset", "parquet", "both"), help="default: webdataset")
    add("--feature-dtype", default="model", choices=FEATURE_DTYPES,
        help="of the stored features (default: model, lossless)")  # fmt: skip
    add("--shard-size", type=int, default=512, metavar="N", help="distinct images a shard (default: 512)")
    add = options.add_argument_group("how the work is done").add_argument
    add("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"),
        help="the model runs in (default: auto, the checkpoint's own); scoring is always float32")  # fmt: skip
    add("--batch-size", type=_batch_size, default=8, metavar="N|auto",
        help="images a forward pass (default: 8); auto measures once and keeps what it found")  # fmt: skip
    add("--workers", type=int, metavar="N", help="model actors (default: one a GPU, else one less than CPUs)")
    add("--gpus-per-worker", type=float, metavar="N",
        help="whole ones or a share of one (default: 1 where the cluster has GPUs, else 0)")  # fmt: skip
    add("--device", default="auto", choices=DEVICES,
        help="of the model (default: auto, CUDA on workers that have a GPU, else the CPU)")  # fmt: skip
    add = options.add_argument_group("when things fail").add_argument
    add("--retries", type=int, default=2, metavar="N", help="of a shard in a stage before it is given up (default: 2)")
    add("--shard-timeout", dest="shard_timeout_sec", type=float, default=3600, metavar="SEC",
        help="for one shard in one stage (default: 3600)")  # fmt: skip
    add("--max-error-rate", type=float, default=0.5, metavar="SHARE",
        help="stop when more than this share of the inputs fails (default: 0.5)")  # fmt: skip
    add("--verify", action="store_true", help="read every committed byte again; damaged shards are redone")
    add("--redo-errors", action="store_true", help="redo shards that hold missing files or I/O errors")
    given = vars(options.parse_args(arguments))
    given["corpus"] = tuple(given["corpus"])
    given["output"] = output_path(given["output"])
    return PruneSettings(**given, ray_address=ray_address())


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else int(text)


def main(arguments: list[str]) -> int:
    """Parse, prune, say what was done; the exit status."""
    settings = parse(arguments)
    result = prune_corpus(settings, say)
    if result.shards_done:
        say(f"pruned {result.images:,} images in {result.shards_done:,} shards, {result.errors:,} errors")
    if result.shards_done and not (result.failures or result.left_out or result.stopped_by):
        say(f"the output lies in {settings.output}")
    return exit_status(result.failures, result.stopped_by, len(result.left_out))


if __name__ == "__main__":
    run(main)
