"""Prune a corpus: encode every distinct image once, rank its visual tokens, store the ranking and the kept features.

python -m jobs.prune_corpus --corpus "shards/{000000..000099}.tar" --model llava-hf/llava-1.5-7b-hf --output out
ray job submit --working-dir . -- python jobs/prune_corpus.py --corpus "/data/*.tar" --model ... --output /data/out
"""

from jobs.console import output_path, parser, ray_address, run, say
from pipeline.payload import FEATURE_DTYPES
from pipeline.prune import PruneSettings, prune_corpus

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
    add("--max-tokens", default="64", metavar="COUNT|RATIO|all",
        help="tokens kept of an image: 64, 0.125 or all (default: 64); smaller budgets can be read later")  # fmt: skip
    add("--selector", default="zoo", choices=("zoo", "feature_norm", "random"), help="default: zoo")
    add("--estimator", default="closed_form", choices=("closed_form", "finite_difference"),
        help="of the sensitivity (default: closed_form, exact)")  # fmt: skip
    add("--features", default="webdataset", choices=("webdataset", "parquet", "both"), help="default: webdataset")
    add("--feature-dtype", default="model", choices=FEATURE_DTYPES,
        help="of the stored features (default: model, lossless)")  # fmt: skip
    add("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"),
        help="the model runs in (default: auto, the checkpoint's own); scoring is always float32")  # fmt: skip
    add("--shard-size", type=int, default=512, metavar="N", help="distinct images a shard (default: 512)")
    add("--batch-size", type=int, default=8, metavar="N", help="images a forward pass (default: 8)")
    add("--workers", type=int, metavar="N", help="model actors (default: one a GPU, else one less than CPUs)")
    add("--gpus-per-worker", type=float, metavar="N", help="default: 1 where the cluster has GPUs, else 0")
    add("--seed", type=int, default=0, metavar="N", help="of random estimators and selectors (default: 0)")
    add("--limit", type=int, metavar="N", help="take only the first N samples of the corpus")
    given = vars(options.parse_args(arguments))
    given["corpus"] = tuple(given["corpus"])
    given["output"] = output_path(given["output"])
    return PruneSettings(**given, ray_address=ray_address())


def main(arguments: list[str]) -> None:
    """Parse, prune, say where it lies."""
    settings = parse(arguments)
    result = prune_corpus(settings, say)
    if result.shards_done:
        say(
            f"pruned {result.images:,} images in {result.shards_done:,} shards, {result.errors:,} errors; "
            f"the output lies in {settings.output}"
        )


if __name__ == "__main__":
    run(main)
