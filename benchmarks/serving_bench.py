"""The sides of benchmarks/serving.py at work: what they are asked, what a turn of theirs takes, and its operations."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from benchmarks.scaled_next import Dims, save_corpus, save_model
from benchmarks.serving_baselines import DIRECTIONS, Answers, Clock, Limits, Stock, asked_in
from benchmarks.serving_ours import Ours

WORDS = 28  # of a prompt
UNTOUCHED, SHARED, IN_REQUEST, PRUNE, ANSWER = "untouched", "prefix shared", "in request", "prune", "answer"


@dataclass(frozen=True)
class Work:
    """What is asked in one turn."""

    images: int
    prompts: int
    new_tokens: int

    @property
    def answers(self) -> int:
        """In all."""
        return self.images * self.prompts


@dataclass(frozen=True)
class Case:
    """One side doing some work; `tokens` are kept of an image, 0: all of them are there."""

    side: str
    work: Work
    tokens: int = 0

    @property
    def name(self) -> str:
        """As it stands in the results."""
        kept = f", {self.tokens} tokens" if self.tokens else ""
        new = "" if self.side == PRUNE else f", {self.work.new_tokens} new"
        return f"{self.side}{kept}, {self.work.images} images x {self.work.prompts} prompts{new}"


@dataclass(frozen=True)
class Turn:
    """What came of one."""

    answers: Answers
    wall_sec: float
    cpu_sec: float
    parts: dict[str, float]


class Bench:
    """Model, corpora and sides in one folder; a side is loaded when it is first needed."""

    def __init__(self, folder: Path, dims: Dims, limits: Limits, threads: int) -> None:
        self.folder, self.dims, self.threads = folder, dims, threads
        self.limits = limits
        self._pruned: dict[tuple[int, int, int], Ours] = {}
        model = folder / "model"
        self.model = str(model) if model.exists() else save_model(model, dims)

    @cached_property
    def stock(self) -> Stock:
        """The untouched model."""
        return Stock(self.model, self.limits)

    def manifest(self, work: Work) -> Path:
        """The corpus of some work, made once."""
        folder = self.folder / f"corpus-{work.images}-{work.prompts}"
        if not folder.exists():
            save_corpus(folder, self.dims, work.images, work.prompts, WORDS)
        return folder / "prompts.jsonl"

    def ours(self, case: Case) -> Ours:
        """Our side at some number of tokens, its corpus pruned."""
        key = (case.work.images, case.work.prompts, case.tokens)
        if key not in self._pruned:
            output = self.folder / f"pruned-{'-'.join(map(str, key))}"
            ours = Ours(self.model, self.manifest(case.work), output, case.tokens, self.limits)
            if not ours.is_pruned:
                ours.prune()
            self._pruned[key] = ours
        return self._pruned[key]

    def ready(self, case: Case) -> Callable[[Clock], Answers]:
        """What a turn of a case does, everything loaded."""
        if case.side in (PRUNE, ANSWER):
            ours = self.ours(case)
            if case.side == PRUNE:
                return ours.prune_turn()
            return ours.answer_turn(case.work.new_tokens)
        asked, new_tokens = asked_in(self.manifest(case.work)), case.work.new_tokens
        if case.side == IN_REQUEST:
            return partial(self.stock.in_request, asked, new_tokens, kept=case.tokens)
        way = self.stock.untouched if case.side == UNTOUCHED else self.stock.shared
        return partial(way, asked, new_tokens)

    def turn(self, case: Case) -> Turn:
        """Do it, and stop the time."""
        work = self.ready(case)
        torch.set_num_threads(self.threads)  # ours limit themselves to one as they load
        gc.collect()
        clock = Clock()
        wall, cpu = time.perf_counter(), time.process_time()
        with clock.watching():
            answers = work(clock)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Turn(answers, wall, cpu, {**clock.seconds, "other": wall - sum(clock.seconds.values())})


def operations(dims: Dims, side: str, work: Work, tokens: int) -> float:
    """Floating-point operations of a case on a model of these dims, in its plain arithmetic."""
    tower, projector = sum(dims.tower_flops().values()), dims.projector_flops() * dims.visual_tokens
    text, behind = WORDS + 1, 1  # of the prompt's tokens the image has one before it
    image = (tokens or dims.visual_tokens) + dims.newlines
    prefix, prompt = behind + image, behind + image + text
    writing = dims.writing_flops(work.new_tokens, prompt)
    apart = dims.reading_flops(prompt) + writing
    together = dims.reading_flops(text, prefix) + writing  # behind an image that was read
    if side == UNTOUCHED:
        return work.answers * (tower + projector + apart)
    if side == IN_REQUEST:
        return work.answers * (tower + (1 + 2 * DIRECTIONS) * projector + apart)
    if side == PRUNE:  # the closed form costs about a projection
        return work.images * (tower + 2 * projector)
    read = work.images * dims.reading_flops(prefix) + work.answers * together
    return read if side == ANSWER else read + work.images * (tower + projector)
