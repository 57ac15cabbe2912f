"""Settings of the prune job."""

from typing import Annotated, Literal, Self

from annotated_types import Ge, Le, MinLen
from pydantic import model_validator

from pipeline.corpus.reading import CAPTION_PROMPT, Reading
from pipeline.errors import UserError
from pipeline.settings import (
    FAILURES,
    WORK,
    BudgetText,
    ClusterSettings,
    Count,
    FolderToRead,
    FolderToWrite,
    Option,
    Text,
)

READ = "how the corpus is read"
SELECTED = "what is selected"
WRITTEN = "what is written"
BEFORE = "before spending"

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
Features = Literal["webdataset", "parquet", "both", "none"]
FeatureDtype = Literal["model", "float32", "float16", "bfloat16", "int8"]


class CorpusSettings(ClusterSettings):
    """What every job is told that reads a corpus with a model."""

    corpus: Annotated[
        tuple[Text, ...],
        MinLen(1),
        Option(
            "tars, Parquet, .jsonl, .json, folders, hf://datasets/OWNER/NAME; braces and globs, in quotes; repeatable",
            "PATTERN",
        ),
    ]
    model: Annotated[Text, Option("checkpoint folder or hub id", "PATH|ID")]
    output: Annotated[FolderToWrite, Option("where the artifact lies; the same folder resumes", "FOLDER")]

    prompt: Annotated[
        tuple[Text, ...],
        Option("asked about every image, beside prompts of its own; repeatable", "TEXT", READ, decides=True),
    ] = ()
    caption_prompt: Annotated[
        Text, Option("asked about an image that has captions and no prompts; they are its references", "TEXT", READ,
                     decides=True),
    ] = CAPTION_PROMPT  # fmt: skip
    prompt_column: Annotated[
        Text | None, Option("or key of a JSON record, with the prompt, a list of them, or the turns of a conversation",
                            "NAME", READ, decides=True),
    ] = None  # fmt: skip
    reference_column: Annotated[Text | None, Option("with what is answered", "NAME", READ, decides=True)] = None
    type_column: Annotated[Text | None, Option("with the type of the prompt", "NAME", READ, decides=True)] = None
    id_column: Annotated[Text | None, Option("with the id of the prompt", "NAME", READ, decides=True)] = None
    image_column: Annotated[
        Text | None, Option("with the image or its path; without it image", "NAME", READ, decides=True)
    ] = None
    image_root: Annotated[
        FolderToRead | None, Option("of image files that are named; without it that of their input", "FOLDER", READ)
    ] = None

    @property
    def reading(self) -> Reading:
        """How the records of the corpus are read."""
        return Reading(
            prompts=self.prompt,
            caption_prompt=self.caption_prompt,
            prompt_column=self.prompt_column,
            reference_column=self.reference_column,
            type_column=self.type_column,
            id_column=self.id_column,
            image_column=self.image_column,
            image_root=self.image_root,
        )


class PruneSettings(CorpusSettings):
    """Everything the prune job can be told."""

    plan: Annotated[
        bool,
        Option("say what the job would read, write and take, and the command that runs it; writes nothing",
               group=BEFORE, once=True),
    ] = False  # fmt: skip
    plan_sample: Annotated[
        int, Ge(0), Option("samples of the corpus that --plan looks at; 0: all", "N", BEFORE, once=True)
    ] = 1000

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
    sample: Annotated[
        Count | None,
        Option("prune only so many images that can be asked about, drawn by their sha256 and --sample-seed from the "
               "whole corpus, which is read once for it", "N", SELECTED, decides=True),
    ] = None  # fmt: skip
    sample_seed: Annotated[int | None, Option("of --sample; 0 without it", "N", SELECTED, decides=True)] = None

    features: Annotated[
        Features, Option("form of the stored features; none: rankings alone, which can't be answered from", "FORM",
                         WRITTEN, decides=True)
    ] = "webdataset"  # fmt: skip
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
    verify: Annotated[
        bool, Option("read every committed byte again; damaged shards are redone", group=FAILURES, once=True)
    ] = False
    redo_errors: Annotated[
        bool, Option("redo shards that hold missing files or I/O errors", group=FAILURES, once=True)
    ] = False

    @model_validator(mode="after")
    def _sample_is_of_a_plan(self) -> Self:
        if "plan_sample" in self.model_fields_set and not self.plan:
            raise UserError(f"--plan-sample {self.plan_sample}: nothing but --plan looks at a sample; give --plan too")
        return self

    @model_validator(mode="after")
    def _seed_is_of_a_sample(self) -> Self:
        if self.sample is None and self.sample_seed is not None:
            raise UserError(f"--sample-seed {self.sample_seed}: no sample is drawn without --sample; give it too")
        if self.sample is not None and self.plan:
            raise UserError(f"--sample {self.sample}: --plan looks at whole corpora; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _dtype_is_of_something(self) -> Self:
        if self.features == "none" and self.feature_dtype != "model":
            raise UserError(
                f"--feature-dtype {self.feature_dtype}: --features none stores no features; leave one of the two out"
            )
        return self
