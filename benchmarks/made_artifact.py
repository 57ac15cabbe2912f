"""A pruned artifact of made-up selections, and answers over it: for benchmarks of what reads them. No model runs.

Rankings, gains and sensitivities are random but of the form that pruning gives; answers to fewer tokens are wrong more
often. The same arguments give the same bytes, but for the times of modification in commit records.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_features, write_table
from pipeline.budget import parse_budget
from schemas.columns import schema_of, structs_of, table_of
from schemas.records import CommitRecord, JobRecord
from schemas.selections import ErrorRow, FeatureRow, Grid, Position, SegmentRow
from schemas.tables import ANSWERS, PROMPTS, SCHEMA_VERSION, SELECTIONS
from schemas.views import STAGES

TYPES = ("color", "count", "digit", "exist", "relation", "caption")
CAPTION = TYPES.index("caption")
WORDS = ("red", "blue", "green", "one", "two", "three", "circle", "square", "star", "yes", "no", "left")
UNREADABLE, EMPTY, REPEATED, REFUSED, CUT_SHORT = 0.02, 0.01, 0.05, 0.005, 0.01  # shares


@dataclass(frozen=True)
class Form:
    """How large the artifact is, and what was asked of it."""

    shards: int
    images_a_shard: int
    prompts_an_image: int
    budgets: Sequence[str] = ("all", "64")  # a run of answers each
    side: int = 16  # of the grid of tokens
    kept: int = 256
    width: int = 0  # of the stored features; 0: none are stored
    images_a_tar: int = 10_000
    seed: int = 0

    @property
    def images(self) -> int:
        return self.shards * self.images_a_shard

    @property
    def prompts(self) -> int:
        return self.images * self.prompts_an_image

    @property
    def tokens(self) -> int:
        return self.side * self.side


@dataclass(frozen=True)
class Made:
    """Where a made artifact lies."""

    pruned: Path
    answers: tuple[Path, ...]


def make_artifact(root: Path, form: Form, processes: int = 2) -> Made:
    """Write the output of a prune job and of an answer job for each budget, all finished."""
    made = Made(root / "pruned", tuple(root / f"answers-{budget}" for budget in form.budgets))
    Artifact(made.pruned).adopt_job(JobRecord("prune", SCHEMA_VERSION, {"max_tokens": "all"}, {"config": "made"}, {}))
    for path, budget in zip(made.answers, form.budgets, strict=True):
        Artifact(path).adopt_job(JobRecord("answer", SCHEMA_VERSION, {"tokens": budget}, {"config": "made"}, {}))
    if processes == 1:
        for shard in range(form.shards):
            _write_shard(made, form, shard)
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(pool.map(_write_shard, [made] * form.shards, [form] * form.shards, range(form.shards), chunksize=4))
    for path in (made.pruned, *made.answers):
        Artifact(path).finish({"num_shards": form.shards})
    return made


def _write_shard(made: Made, form: Form, number: int) -> None:
    shard = _Shard(form, number)
    files = {
        "selections": write_table(made.pruned, "selections", number, shard.selections),
        "prompts": write_table(made.pruned, "prompts", number, shard.prompts),
        "errors": write_table(made.pruned, "errors", number, shard.errors),
    }
    if form.width:
        files.update(write_features(made.pruned, number, shard.selections, shard.features, ("parquet",)))
    failed, asked, empty = shard.unreadable, len(shard.prompts), int(shard.empty.sum())
    counts = {
        "samples": form.images_a_shard + failed,
        "samples.ok": form.images_a_shard,
        "samples.unreadable_image": failed,
        "images": form.images_a_shard,
        "prompts": asked,
        "prompts.ok": asked - empty,
        "prompts.empty_prompt": empty,
    }
    seconds = dict(zip(STAGES, shard.chance.gamma(2.0, 1.5, len(STAGES)).round(6).tolist(), strict=True))
    Artifact(made.pruned).commit(CommitRecord(number, files, counts, seconds, batch_size=8))
    sources = {entry.path: entry.sha256 for name, entry in files.items() if name != "errors"}
    for path, budget in zip(made.answers, form.budgets, strict=True):
        answers = shard.answers(min(form.kept, parse_budget(budget, "--tokens").of(form.tokens)))
        entry = write_table(path, "answers", number, answers)
        graded = answers["correct"].drop_null()
        done = {"prompts": len(answers), "refused": len(answers) - len(graded)}
        done |= {"graded": len(graded), "correct": int(pc.sum(graded).as_py() or 0)}
        Artifact(path).commit(CommitRecord(number, {"answers": entry}, done, {"generate": 1.0}, sources=sources))


class _Shard:
    """The tables of one shard."""

    def __init__(self, form: Form, number: int) -> None:
        self._form, self._number = form, number
        self.chance = chance = np.random.default_rng((form.seed, number))
        images, asked = form.images_a_shard, form.images_a_shard * form.prompts_an_image
        self._ids = [chance.bytes(32).hex() for _ in range(images)]
        first = number * images
        self._sources = [f"train-{n // form.images_a_tar:06d}.tar/{n:09d}" for n in range(first, first + images)]
        self.unreadable = int(chance.binomial(images, UNREADABLE))
        self.empty = chance.random(asked) < EMPTY
        self._of_image = np.repeat(np.arange(images), form.prompts_an_image)
        self._kinds = chance.integers(0, len(TYPES), asked)
        self._meant = chance.integers(0, len(WORDS), asked)
        self._luck = chance.random(asked)
        self._fate = chance.random(asked)

    @cached_property
    def selections(self) -> pa.Table:
        """Rankings by a noisy sensitivity, higher in the middle of the image."""
        form, images = self._form, self._form.images_a_shard
        place = np.arange(form.tokens)
        middle = (form.side - 1) / 2
        away = np.hypot(place // form.side - middle, place % form.side - middle) / form.side
        sensitivity = (self.chance.gamma(4.0, 0.25, (images, form.tokens)) * (1.5 - away)).astype(np.float32)
        noisy = sensitivity * self.chance.uniform(0.5, 1.5, sensitivity.shape).astype(np.float32)
        ranking = np.argsort(-noisy, axis=1).astype(np.int32)[:, : form.kept]
        gain = np.take_along_axis(noisy, ranking, axis=1)
        flat = ranking.reshape(-1)
        position = structs_of(Position, tile=np.zeros_like(flat), row=flat // form.side, col=flat % form.side)
        whole = {"rows": form.side, "cols": form.side}
        segment = dict.fromkeys(schema_of(SegmentRow).names, 0) | whole
        segments = structs_of(SegmentRow, **{name: np.full(images, value) for name, value in segment.items()})
        grid = structs_of(Grid, **{name: np.full(images, value) for name, value in {**whole, "tiles": 1}.items()})
        columns = {
            "image_id": pa.array(self._ids),
            "source": pa.array(self._sources),
            "shard": _all(images, self._number),
            "width": pa.array(self.chance.integers(200, 640, images, np.int32)),
            "height": pa.array(self.chance.integers(200, 640, images, np.int32)),
            "num_tokens": _all(images, form.tokens),
            "num_kept": _all(images, ranking.shape[1]),
            "num_structure": _all(images, 0),
            "grid": grid,
            "segments": _lists(segments, images, SELECTIONS.field("segments").type),
            "structure": pa.array([[]] * images, SELECTIONS.field("structure").type),
            "image_grid_thw": pa.nulls(images, SELECTIONS.field("image_grid_thw").type),
            "ranking": _lists(pa.array(flat), images),
            "gain": _lists(pa.array(gain.reshape(-1)), images),
            "sensitivity": _lists(pa.array(sensitivity.reshape(-1)), images),
            "position": _lists(position, images, SELECTIONS.field("position").type),
            "sensitivity_min": pa.array(sensitivity.min(axis=1)),
            "sensitivity_mean": pa.array(sensitivity.mean(axis=1)),
            "sensitivity_max": pa.array(sensitivity.max(axis=1)),
            "last_gain": pa.array(gain[:, -1].copy()),
        }
        return pa.table([columns[name] for name in SELECTIONS.names], schema=SELECTIONS)

    @property
    def features(self) -> pa.Table:
        """Zeros of the stored size."""
        import torch  # here: processes that store none need not wait for it

        from pipeline.artifact.payload import pack_features

        kept = len(self.selections["ranking"][0])
        payload = pack_features({"features": torch.zeros(kept, self._form.width)}, "float16")
        rows = [
            FeatureRow(image_id=image, num_kept=kept, width=self._form.width, dtype="float16", features=payload)
            for image in self._ids
        ]
        return table_of(FeatureRow, rows)

    @cached_property
    def prompts(self) -> pa.Table:
        """One of an image comes from another sample now and then, and a few have no text."""
        count, each = len(self._of_image), self._form.prompts_an_image
        again = self.chance.random(self._form.images_a_shard) < REPEATED
        of_another = again[self._of_image] & (np.arange(count) % each == each - 1)
        sources = pc.take(pa.array(self._sources), pa.array(self._of_image))
        words = [pc.take(pa.array(WORDS), pa.array(self.chance.integers(0, len(WORDS), count))) for _ in range(2)]
        text = pc.binary_join_element_wise("what is beside the", *words, "?", " ")
        numbers = pc.cast(pa.array(np.arange(count) % each), pa.string())
        columns = {
            "prompt_id": pc.binary_join_element_wise(sources, numbers, "#"),
            "image_id": pc.take(pa.array(self._ids), pa.array(self._of_image)),
            "prompt": pc.if_else(self.empty, "", text),
            "messages": pa.nulls(count, PROMPTS.field("messages").type),
            "references": _lists(pc.take(pa.array(WORDS), pa.array(self._meant)), count),
            "type": pc.take(pa.array(TYPES), pa.array(self._kinds)),
            "source": pc.if_else(of_another, pc.binary_join_element_wise(sources, "again", "-"), sources),
            "status": pc.if_else(self.empty, "empty_prompt", "ok"),
            "shard": _all(count, self._number),
            "image_shard": _all(count, self._number),
        }
        return pa.table([columns[name] for name in PROMPTS.names], schema=PROMPTS)

    @cached_property
    def errors(self) -> pa.Table:
        """Samples that could not be decoded, and the prompts without text."""
        empty = self.prompts.filter(pa.array(self.empty))
        rows = [
            ErrorRow(
                source=f"train-{self._number:06d}.tar/bad-{n}", prompt_id=None, image_id=None,
                reason="unreadable_image", message="cut short", shard=self._number,
            )
            for n in range(self.unreadable)
        ]  # fmt: skip
        rows += [
            ErrorRow(
                source=prompt["source"], prompt_id=prompt["prompt_id"], image_id=prompt["image_id"],
                reason="empty_prompt", message="no text", shard=self._number,
            )
            for prompt in empty.to_pylist()
        ]  # fmt: skip
        return table_of(ErrorRow, rows)

    def answers(self, tokens: int) -> pa.Table:
        """Right with a chance that grows with the tokens; the same luck at every budget."""
        posed = ~self.empty
        count, mask = int(posed.sum()), pa.array(posed)
        asked, kinds, meant = self.prompts.filter(mask), self._kinds[posed], self._meant[posed]
        missing = 1 - tokens / self._form.tokens
        right = self._luck[posed] < 0.95 - 0.2 * missing - 0.3 * missing * (kinds == TYPES.index("count"))
        said = np.where(right, meant, (meant + 1 + (self._fate[posed] * 1e6).astype(int) % 3) % len(WORDS))
        refused = self._fate[posed] < REFUSED
        ends = np.where(self._fate[posed] > 1 - CUT_SHORT, "length", np.where(refused, "refused", "stop"))
        score = np.where(right, 1.0, np.where(kinds == CAPTION, 0.5, 0.0)).astype(np.float32)
        columns = {
            **{name: asked[name] for name in ("prompt_id", "image_id", "type", "references")},
            "answer": pc.if_else(refused, pa.scalar(None, pa.string()), pc.take(pa.array(WORDS), pa.array(said))),
            "answer_tokens": _lists(pa.array(said.astype(np.int32)), count),
            "finish_reason": pa.array(ends),
            "tokens": pa.array(np.where(refused, 0, tokens).astype(np.int32)),
            "seconds": pa.array(np.where(refused, 0, 0.002 + tokens / 16384).astype(np.float32)),
            "correct": pa.array(right, mask=refused),
            "metric": pc.if_else(kinds == CAPTION, "object_f1", "exact"),
            "score": pa.array(score, mask=refused),
            "shard": _all(count, self._number),
            "message": pc.if_else(refused, "too long", pa.scalar(None, pa.string())),
        }
        return pa.table([columns[name] for name in ANSWERS.names], schema=ANSWERS)


def _all(count: int, value: int) -> pa.Array:
    return pa.array(np.full(count, value, np.int32))


def _lists(values: pa.Array, count: int, kind: pa.DataType | None = None) -> pa.ListArray:
    """Values as so many lists of one length."""
    offsets = np.arange(count + 1, dtype=np.int32) * (len(values) // count)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)
