"""Settings of the prune job."""

from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from pipeline.settings import FAILURES, WORK, BudgetText, ClusterSettings, Count, FolderToWrite, Option, Text

SELECTED = "what is selected"
WRITTEN = "what is written"

# As in `zoo_ops`, which imports torch: naming the choices must not take the seconds of that. A test compares them.
Selector = Literal[
    "zoo",
    "zoo_centered",
    "divprune",
    "divprune_centered",
    "coverage",
    "zoo_coverage",
    "cls_attention",
    "sensitivity",
    "feature_norm",
    "random",
    "uniform_grid",
]
Estimator = Literal["closed_form", "directional", "finite_difference"]
Features = Literal["webdataset", "parquet", "both"]
FeatureDtype = Literal["model", "float32", "float16", "bfloat16", "int8"]


class PruneSettings(ClusterSettings):
    """Everything the prune job can be told."""

    corpus: Annotated[
        tuple[Text, ...],
        MinLen(1),
        Option("WebDataset tars or a JSONL manifest; braces and globs, in quotes; repeatable", "PATTERN"),
    ]
    model: Annotated[Text, Option("checkpoint folder or hub id", "PATH|ID")]
    output: Annotated[FolderToWrite, Option("where the artifact lies; the same folder resumes", "FOLDER")]

    max_tokens: Annotated[
        BudgetText,
        Option("tokens kept of an image: 64, 0.125 or all; smaller budgets can be read later", "COUNT|RATIO|all",
               SELECTED, decides=True),
    ] = "64"  # fmt: skip
    selector: Annotated[
        Selector, Option("how they are chosen; cls_attention: CLIP towers only", "NAME", SELECTED, decides=True)
    ] = "zoo"
    estimator: Annotated[
        Estimator, Option("of the sensitivity, always in float32; closed_form is exact", "NAME", SELECTED, decides=True)
    ] = "closed_form"
    seed: Annotated[int, Option("of random estimators and selectors", "N", SELECTED, decides=True)] = 0
    limit: Annotated[
        Count | None, Option("take only the first N samples of the corpus", "N", SELECTED, decides=True)
    ] = None

    features: Annotated[Features, Option("form of the stored features", "FORM", WRITTEN, decides=True)] = "webdataset"
    feature_dtype: Annotated[
        FeatureDtype, Option("of the stored features; model is lossless", "DTYPE", WRITTEN, decides=True)
    ] = "model"
    shard_size: Annotated[Count, Option("distinct images a shard at most", "N", WRITTEN, decides=True)] = 512
    shard_bytes: Annotated[
        Count, Option("prepared pixels a shard at most, or one image", "BYTES", WRITTEN, decides=True)
    ] = 1 << 30

    batch_size: Annotated[
        Count | Literal["auto"],
        Option("images a forward pass; auto measures once and keeps what it found", "N|auto", WORK, decides=True),
    ] = 8

    max_error_rate: Annotated[
        float, Ge(0), Le(1), Option("stop when more than this share of the inputs fails", "SHARE", FAILURES)
    ] = 0.5
    verify: Annotated[bool, Option("read every committed byte again; damaged shards are redone", group=FAILURES)] = (
        False
    )
    redo_errors: Annotated[bool, Option("redo shards that hold missing files or I/O errors", group=FAILURES)] = False
