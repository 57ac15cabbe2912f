"""Our side of benchmarks/serving.py: the stages of the prune job and of the answer job, one after the other, no Ray."""

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from torch import Tensor

from benchmarks.serving_baselines import Answers, Clock, Limits
from pipeline.answer.decoding import Decoding
from pipeline.answer.generate_settings import GenerateSettings
from pipeline.answer.stage import AnswerShards
from pipeline.artifact.artifact import Artifact
from pipeline.budget import Budget
from pipeline.cluster.run_folder import StopFile
from pipeline.corpus.scan import scan, scan_units
from pipeline.loader.shard import ShardLoader
from pipeline.prune.encode import EncodeShards
from pipeline.prune.measure import index_row
from pipeline.prune.plan import plan
from pipeline.prune.read import decode_samples
from pipeline.prune.settings import PruneSettings
from pipeline.prune.write import WriteSettings, write_shard
from pipeline.storage import LocalStore
from schemas.columns import table_of
from schemas.records import CommitRecord
from schemas.samples import IndexRow

BATCH = 2  # images a pass of the tower


class Ours:
    """One corpus pruned to so many tokens an image, and answered from that artifact."""

    def __init__(self, model: str, manifest: Path, output: Path, tokens: int, limits: Limits) -> None:
        settings = PruneSettings(
            corpus=(str(manifest),), model=model, output=str(output), max_tokens=str(tokens), batch_size=BATCH
        )
        self._plan, self._limits, self._model = plan(settings), limits, model
        self._artifact, self.output = Artifact(output), output
        self._encoder: EncodeShards | None = None
        self._answering: dict[int, AnswerShards] = {}

    @property
    def is_pruned(self) -> bool:
        """Whether the artifact is there."""
        return self._artifact.read_commit(0) is not None

    def prune(self) -> None:
        """Make the artifact."""
        self._artifact.adopt_job(self._plan.job)
        self.prune_turn()(Clock())

    def prune_turn(self) -> Callable[[Clock], Answers]:
        """Indexes, reads, prepares, encodes, scores, ranks and commits all images: the stages of the prune job."""
        self._encoder = self._encoder or EncodeShards(self._plan.encode("cpu", BATCH))
        encoder = self._encoder

        def work(clock: Clock) -> Answers:
            started = time.perf_counter()
            samples = [sample for unit in scan_units(self._plan.inputs) for sample in scan(unit)]
            index = table_of(IndexRow, [index_row(sample, slot) for slot, sample in enumerate(samples)])
            indexed_sec = time.perf_counter() - started
            encoded = encoder.encode_shard(decode_samples(index, self._model), BATCH)
            write_shard(encoded, WriteSettings(self.output, ("webdataset",)))
            seconds = self._record(self._artifact).seconds
            clock.seconds.clear()  # the stages tell their time themselves
            clock.seconds["prepare"] = indexed_sec + seconds["read"] + seconds["decode"]
            clock.seconds |= {name: seconds[name] for name in ("encode", "score", "write")}
            clock.seconds["rank"] = seconds["select"]
            return {}

        return work

    def answer_turn(self, new_tokens: int) -> Callable[[Clock], Answers]:
        """Loads the artifact, answers its prompts and commits the answers: the stage of the answer job."""
        output = self.output.with_name(f"{self.output.name}-answers-{new_tokens}")
        stage = self._answering.get(new_tokens)
        if stage is None:
            settings = GenerateSettings(
                pruned=self.output,
                output=output,
                model=self._model,
                dtype=self._plan.dtype,
                budget=Budget("all"),
                batch_size=self._limits.prompts,
                batch_tokens=self._limits.tokens,
                decoding=Decoding(new_tokens),
                stop_file=StopFile(LocalStore(output), "stop"),
            )
            stage = self._answering[new_tokens] = AnswerShards(settings)

        def work(clock: Clock) -> Answers:
            stage.answer_shard(0, self._limits.prompts)
            record = self._record(Artifact(output))
            clock.seconds |= {name: record.seconds[name] for name in ("load", "write")}
            table = pq.read_table(output / record.files["answers"].path)
            return dict(zip(table["prompt_id"].to_pylist(), table["answer_tokens"].to_pylist(), strict=True))

        return work

    def kept_sets(self) -> dict[str, Tensor]:
        """The kept tokens of every image, ascending, by the name of its file."""
        images = ShardLoader(self._artifact).load(0, Budget("all")).images
        table = pq.read_table(self.output / self._record(self._artifact).files["selections"].path)
        names = (source.rpartition("/")[2] for source in table["source"].to_pylist())
        return {name: images[one].indices_K for name, one in zip(names, table["image_id"].to_pylist(), strict=True)}

    def bytes_read(self) -> int:
        """Of the files that answering opens."""
        return sum(entry.size_bytes for name, entry in self._record(self._artifact).files.items() if name != "errors")

    @staticmethod
    def _record(artifact: Artifact) -> CommitRecord:
        record = artifact.read_commit(0)
        assert record is not None, "the shard was committed"
        return record
