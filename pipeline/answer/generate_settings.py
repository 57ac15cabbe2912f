"""What the stage that answers, and its engines, are told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import ServerSettings
from pipeline.budget import Budget, GainBudget
from pipeline.cluster.attempts import Policy
from pipeline.cluster.run_folder import StopFile
from pipeline.grading.grader import Grader
from pipeline.storage import Store
from schemas.records import FileEntry


@dataclass(frozen=True)
class GenerateSettings:
    """What the answering actor needs to know."""

    pruned: Path | Store
    output: Path | Store  # as its holder writes to it
    model: str
    dtype: str
    budget: Budget | GainBudget
    batch_size: int  # prompts a batch; a shard for which memory runs out is answered with less
    batch_tokens: int  # tokens a batch, padding and answers included; as much less where memory runs out
    decoding: Decoding
    stop_file: StopFile  # while it exists no further shard is begun
    asked: Mapping[int, FileEntry] | None = None  # files of prompts in the output, by shard; None: the pruned ones
    positions: str | None = None  # of the family's; None: its default
    grader: Grader = Grader()
    device: str = "cpu"  # or "cuda", or "auto": CUDA where the worker sees it
    policy: Policy = Policy()
    gpu_share: float = 1.0  # of a GPU, where the device is one
    engine: str = "transformers"
    server: ServerSettings | None = None  # that the engine asks, if it asks one
