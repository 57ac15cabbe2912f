"""A pruned artifact as a Ray Dataset, and as rows that `ray.data.llm` hands to vLLM.

Both need a running Ray, or Ray Data starts one. Tasks read a shard each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.answer.checks import check_model
from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Question
from pipeline.answer.engines import SERVED
from pipeline.answer.posing import prompt_ids
from pipeline.answer.stage import posed
from pipeline.answer.vllm_prompt import key_of, with_one_token
from pipeline.artifact.artifact import Artifact
from pipeline.cluster.datasets import RayDataset, Rows, dataset_of
from pipeline.datasets.source import Source, open_source
from pipeline.errors import UserError
from pipeline.families.base import KeptImage, Prompter, UnusablePromptError, torch_dtype
from pipeline.families.checkpoint import answering_identity, open_checkpoint
from schemas.columns import column, list_column, row_column, table_of
from schemas.samples import Message
from schemas.selections import Grid
from schemas.stored import StoredPrompt

_ROWS_AT_ONCE = 64  # made in a task before they leave it
_NO_IMAGE = "its image has no selection in the pruned corpus"
GREEDY = {"temperature": 0.0, "max_tokens": 128}


@dataclass(slots=True, kw_only=True)
class DatasetRow:
    """A prompt and what is known of its image, without tensors."""

    prompt_id: str = column(pa.string())
    image_id: str = column(pa.string())
    prompt: str = column(pa.string())
    messages: list[Message] | None = list_column(Message, default=None)
    references: list[str] | None = column(pa.list_(pa.string()))
    type: str | None = column(pa.string())
    shard: int = column(pa.int32())
    num_tokens: int | None = column(pa.int32())  # of the image before pruning
    grid: Grid | None = row_column(Grid)
    structure: list[int] | None = column(pa.list_(pa.int32()))
    indices: list[int] | None = column(pa.list_(pa.int32()))  # of the kept tokens, ascending
    message: str | None = column(pa.string())  # why there are no features; null where there are


@dataclass(slots=True, kw_only=True)
class EngineRow:
    """A prompt as `ray.data.llm` takes it, without its image."""

    prompt_id: str = column(pa.string())
    image_id: str = column(pa.string())
    references: list[str] | None = column(pa.list_(pa.string()))
    type: str | None = column(pa.string())
    tokenized_prompt: list[int] = column(pa.list_(pa.int32()))
    multimodal_uuids: dict[str, list[str]] | None = column(pa.struct([("image", pa.list_(pa.string()))]))


def ray_dataset(
    pruned: str,
    *,
    tokens: str | float = "all",
    min_tokens: int = 1,
    dtype: str | None = "model",
    num_cpus: float = 1.0,
    concurrency: int | None = None,
) -> RayDataset:
    """The prompts of an artifact with the kept features of their images, in no particular order.

    A row is a prompt that can be posed: the columns of `DatasetRow`, and `features` (K, O) in raster order as a NumPy
    array, with `deepstack.<level>` where the family has them. NumPy has no bfloat16: such features come as float32, in
    which every one of their values has its place. A prompt whose image could not be pruned has features (0, 0), and
    `message` says so.

    Args:
        pruned: folder or address of a finished prune job's output, as all workers see it.
        tokens: of each image, as --tokens of the answer job.
        min_tokens: of each image, where tokens are a mean or a gain.
        dtype: of the features; `model`: the one the model had when it pruned; None: as stored, int8 as float32.
        num_cpus: of a task that reads.
        concurrency: tasks at once at most; None: as many as there is room for.

    Raises:
        UserError: the artifact can't be read from, see `open_source`.
    """
    source = open_source(pruned, tokens=tokens, min_tokens=min_tokens, dtype=dtype)
    return dataset_of(range(len(source.shards)), read_rows, source, num_cpus=num_cpus, concurrency=concurrency)


def read_rows(place: int, source: Source) -> Iterator[Rows]:
    """The rows of one shard."""
    read = source.read(place)
    names = sorted({name for _, image in read if image is not None for name in image.extras_KO})
    for begin in range(0, len(read), _ROWS_AT_ONCE):
        some = read[begin : begin + _ROWS_AT_ONCE]
        images = [image for _, image in some]
        tensors = {"features": [_numpy(None if image is None else image.features_KO) for image in images]}
        for name in names:
            tensors[name] = [_numpy(None if image is None else image.extras_KO[name]) for image in images]
        yield Rows(table_of(DatasetRow, [_dataset_row(prompt, image) for prompt, image in some]), tensors)


def _dataset_row(prompt: StoredPrompt, image: KeptImage | None) -> DatasetRow:
    selection = None if image is None else image.selection
    return DatasetRow(
        prompt_id=prompt.prompt_id,
        image_id=prompt.image_id,
        prompt=prompt.prompt,
        messages=prompt.messages,
        references=prompt.references,
        type=prompt.type,
        shard=prompt.shard,
        num_tokens=None if selection is None else selection.num_tokens,
        grid=None if selection is None else Grid(**selection.grid),
        structure=None if selection is None else selection.structure,
        indices=None if image is None else image.indices_K.tolist(),
        message=_NO_IMAGE if image is None else None,
    )


def _numpy(rows: Tensor | None) -> np.ndarray:
    if rows is None:
        return np.zeros((0, 0), np.float32)
    return (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()


@dataclass(frozen=True)
class EngineSettings:
    """What making rows for an engine takes, in any process."""

    source: Source
    model: str
    dtype: str
    sampling_params: Mapping[str, Any] = field(default_factory=dict)


def engine_rows(
    pruned: str,
    *,
    model: str,
    tokens: str | float = "all",
    min_tokens: int = 1,
    sampling_params: Mapping[str, Any] | None = None,
    num_cpus: float = 1.0,
    concurrency: int | None = None,
) -> RayDataset:
    """The prompts of an artifact as rows for the processor that `ray.data.llm.build_processor` makes over vLLM.

    Beside `prompt_id`, `image_id`, `references` and `type` they have the columns that its engine stage takes:
    `tokenized_prompt`, `multimodal_data`, `multimodal_uuids`, `sampling_params`. A prompt that can't be posed has the
    reason in `__inference_error__`, with which every stage lets it pass. The processor's stages for chat templates,
    tokens and images are to be switched off, and vLLM needs the model classes of integrations/vllm.

    `multimodal_data` holds torch tensors, for which Arrow has no type: Ray moves them as pickled objects, with their
    dtype and shape. Such a column is for workers of one Ray, not for files.

    Args:
        pruned: folder or address of a finished prune job's output, as all workers see it.
        model: the checkpoint that pruned; its tokenizer is read, its language model is not.
        tokens: of each image, as --tokens of the answer job.
        min_tokens: of each image, where tokens are a mean or a gain.
        sampling_params: arguments of vLLM's SamplingParams; None: greedy, up to 128 tokens.
        num_cpus: of a task that reads.
        concurrency: tasks at once at most; None: as many as there is room for.

    Raises:
        UserError: the artifact can't be read from, another model pruned it, or vLLM has no class for its family.
    """
    source = open_source(pruned, tokens=tokens, min_tokens=min_tokens)
    artifact = Artifact(source.store)
    checkpoint, family = open_checkpoint(model)
    if family.name not in SERVED:
        raise UserError(
            f"model {checkpoint.name} is of the family {family.name}, which the classes of integrations/vllm do not "
            f"run (they run {', '.join(SERVED)}); answer with zoo-prune answer --engine transformers"
        )
    job = artifact.require_job("prune", "--pruned")
    check_model(model, answering_identity(checkpoint, family), artifact, job)
    settings = EngineSettings(source, checkpoint.pinned, job.settings["dtype"], dict(sampling_params or GREEDY))
    return dataset_of(range(len(source.shards)), read_engine_rows, settings, num_cpus=num_cpus, concurrency=concurrency)


def read_engine_rows(place: int, settings: EngineSettings) -> Iterator[Rows]:
    """The rows of one shard; prompts about one image follow each other, so that its prefix is computed once."""
    inputs = _engine_inputs(settings.model, settings.dtype)
    order: dict[str, int] = {}
    read = settings.source.read(place)
    for prompt, _ in read:
        order.setdefault(prompt.image_id, len(order))
    read.sort(key=lambda one: order[one[0].image_id])
    for begin in range(0, len(read), _ROWS_AT_ONCE):
        yield _engine_rows(inputs, read[begin : begin + _ROWS_AT_ONCE], settings.sampling_params)


def _engine_rows(
    inputs: Prompter, read: Sequence[tuple[StoredPrompt, KeptImage | None]], sampling_params: Mapping[str, Any]
) -> Rows:
    rows: list[EngineRow] = []
    messages: list[str] = []
    data: list[dict[str, Any] | None] = []
    for prompt, image in read:
        ids: list[int] = []
        embeds: dict[str, Tensor] | None = None
        message = _NO_IMAGE
        if image is not None:
            try:
                ids = prompt_ids(inputs, Question(posed(prompt), image), Decoding(max_new_tokens=1))
                embeds, message = inputs.image_embeds(image), ""
                ids = with_one_token(ids, inputs.image_token_id, rows=len(embeds["image_embeds"]))
            except UnusablePromptError as error:
                message = str(error)
        rows.append(
            EngineRow(
                prompt_id=prompt.prompt_id,
                image_id=prompt.image_id,
                references=prompt.references,
                type=prompt.type,
                tokenized_prompt=ids,
                multimodal_uuids=None if embeds is None else {"image": [key_of(prompt.image_id, embeds)]},
            )
        )
        messages.append(message)
        data.append(None if embeds is None else {"image": embeds})
    table = table_of(EngineRow, rows)
    table = table.append_column("__inference_error__", pa.array(messages, pa.string()))
    table = table.append_column("sampling_params", pa.array([dict(sampling_params)] * len(rows)))
    return Rows(table, objects={"multimodal_data": data})


@cache
def _engine_inputs(model: str, dtype: str) -> Prompter:
    """Loaded once a process."""
    checkpoint, family = open_checkpoint(model)
    return family.answerer(checkpoint, torch.device("cpu"), torch_dtype(dtype), language=False)
