"""What one model answers from kept sets of tokens: every selector, every budget, some images.

A language model sees of an image the kept features in raster order and nothing else. So a kept set is answered once,
whichever selectors chose it, and sets of all selectors run beside each other in the same batches: a batch holds sets of
one size, and one-word questions and captions apart, which would make the others wait.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.graded_corpus import GradedPrompt, load_corpus
from pipeline.answer.engine import Reply
from pipeline.answer.transformers_engine import TransformersEngine
from pipeline.budget import Budget
from pipeline.choosing.kept_sets import KeptSet, answer_sets, set_of
from pipeline.families.base import EncodedImage, KeptImage
from pipeline.families.checkpoint import open_checkpoint
from pipeline.prune.select import Selection, SelectSettings, select_tokens
from schemas.stored import StoredSelection
from zoo_ops import SELECTORS

POOLING = "pooling"
RATIOS = (0.75, 0.5, 0.25, 0.125, 0.0625, 0.03125)
RANDOM_SEEDS = 5
MAX_NEW_TOKENS = 48
BATCH_SIZE = 128

Run = tuple[str, int]  # a selector and the seed it ran with


def runs_of(controls: bool) -> list[Run]:
    """Everything that is compared: the reference first, `random` once a seed, with `controls` pooling too."""
    names = sorted(SELECTORS, key=lambda name: (name != "zoo", name))
    runs = [(name, seed) for name in names for seed in range(RANDOM_SEEDS if name == "random" else 1)]
    return [*runs, (POOLING, 0)] if controls else runs


def pooling_factor(grid: tuple[int, int, int], num_kept: int) -> int | None:
    """The f for which f x f average pooling leaves that many tokens of a grid; None where there is none over 1."""
    rows, cols, tiles = grid
    factor = math.isqrt(rows * cols // num_kept)
    fits = tiles == 1 and factor > 1 and rows % factor == cols % factor == 0
    return factor if fits and rows * cols == num_kept * factor**2 else None


def pooled(image: EncodedImage, factor: int) -> tuple[Tensor, Tensor]:
    """Means of the projected features over f x f squares of the grid (K, O), and each square's first token (K,).

    Raises:
        ValueError: the image's tokens are no single raster.
    """
    rows, cols, _ = image.grid
    if len(image.segments) != 1 or image.structure or len(image.projected_NO) != rows * cols:
        raise ValueError("only the tokens of a single raster can be pooled")
    squares = image.projected_NO.reshape(rows // factor, factor, cols // factor, factor, -1)
    firsts = torch.arange(rows * cols).reshape(rows, cols)[::factor, ::factor].flatten()
    return squares.mean(dim=(1, 3)).flatten(0, 1), firsts


def kept_image(name: str, image: EncodedImage, indices_K: Tensor, features_KO: Tensor) -> KeptImage:
    """An image as the answering job would load it, of which the tokens `indices_K` (ascending) are kept."""
    rows, cols, tiles = image.grid
    selection = StoredSelection(
        image_id=name,
        num_tokens=len(image.features_ND),
        num_kept=len(indices_K),
        num_structure=len(image.structure),
        grid={"rows": rows, "cols": cols, "tiles": tiles},
        segments=[vars(segment) for segment in image.segments],
        structure=list(image.structure),
        ranking=indices_K.tolist(),
        gain=[0.0] * len(indices_K),
    )
    return KeptImage(name, selection, indices_K, features_KO, {})


@dataclass(frozen=True)
class Part:
    """Some images of a corpus and the model that is to answer about them."""

    model: str
    manifests: tuple[Path, ...]
    image_ids: Sequence[str]
    controls: bool


@dataclass
class Answered:
    """Scores of one part's questions, in the order of the manifests, and what getting them cost."""

    full_Q: NDArray[np.float64]  # with all tokens
    scores_RBQ: NDArray[np.float64]  # of each run at each budget; NaN where a run has no such budget
    tokens_B: Sequence[int]  # kept of an image
    cpu_sec: dict[int, float] = field(default_factory=dict)  # by number of tokens: processor time of all answers
    generated: Counter[int] = field(default_factory=Counter)  # by number of tokens: answers that were generated
    asked: int = 0  # questions x runs x budgets, answered by as many answers or by fewer
    checked: int = 0  # questions that the equality check compared


class Model:
    """A checkpoint with some encoded images and the questions about them."""

    def __init__(self, path: str, images: dict[str, Image.Image], prompts: Sequence[GradedPrompt]) -> None:
        checkpoint, family = open_checkpoint(path)
        cpu = torch.device("cpu")
        preparer = family.preparer(checkpoint)
        encoder = family.encoder(checkpoint, cpu, torch.float32)
        answerer = family.answerer(checkpoint, cpu, torch.float32)
        self._projector = encoder.projector
        self._engine = TransformersEngine(answerer, batch_size=BATCH_SIZE, batch_tokens=1 << 20)
        self.encoded: dict[str, EncodedImage] = {}
        for image_id, image in images.items():
            pixels, size = preparer.prepare(image), (image.height, image.width)
            (self.encoded[image_id],) = encoder.encode(encoder.pack([pixels], [size]))
        self.prompts = prompts
        self._questions: dict[str, list[int]] = {image_id: [] for image_id in images}
        for number, prompt in enumerate(prompts):
            self._questions[prompt.image_id].append(number)

    def rank(self, selector: str, seed: int) -> dict[str, Selection]:
        """The order in which a selector keeps the tokens of each image."""
        settings = SelectSettings(Budget("all"), selector=selector, seed=seed)
        return {
            image_id: select_tokens([image], [image_id], self._projector, settings)[0]
            for image_id, image in self.encoded.items()
        }

    def kept(self, image_id: str, ranking: Sequence[int]) -> KeptImage:
        """An image with the tokens of a ranking, under a name that stands for exactly this set."""
        image = self.encoded[image_id]
        whole = kept_image(image_id, image, torch.arange(len(image.projected_NO)), image.projected_NO)
        return set_of(whole, ranking).kept

    def merged(self, image_id: str, factor: int) -> KeptImage:
        """An image whose tokens are averaged over squares, as any kept set: in raster order, numbered one by one."""
        features, firsts = pooled(self.encoded[image_id], factor)
        return kept_image(f"{image_id} pooled {factor}", self.encoded[image_id], firsts, features)

    def answer(self, sets: Sequence[tuple[str, KeptImage]]) -> list[dict[int, Reply]]:
        """Replies to all questions about each image as it is kept, by the question's number."""
        captions = {number for number, prompt in enumerate(self.prompts) if prompt.is_caption}
        replies = answer_sets(
            self._engine,
            [KeptSet(image_id, kept) for image_id, kept in sets],
            [prompt.text for prompt in self.prompts],
            self._questions,
            long=captions,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        for of_set in replies:
            for number, reply in of_set.items():
                if reply.text is None:
                    raise ValueError(f"{self.prompts[number].text!r} was refused: {reply.message}")
        return replies


def answer_part(part: Part) -> Answered:
    """Ask one model every question about some images, with all tokens and with every selector at every budget."""
    torch.set_num_threads(1)
    images, prompts = load_corpus(part.manifests)
    images = {image_id: images[image_id] for image_id in part.image_ids}
    prompts = [prompt for prompt in prompts if prompt.image_id in images]
    model = Model(part.model, images, prompts)
    (num_tokens,) = {len(image.features_ND) for image in model.encoded.values()}
    tokens = [Budget("ratio", ratio).of(num_tokens) for ratio in RATIOS]
    runs = runs_of(part.controls)
    everything = [(image_id, model.kept(image_id, range(num_tokens))) for image_id in images]
    nothing = np.full((len(runs), len(tokens), len(prompts)), np.nan)
    answered = Answered(np.full(len(prompts), np.nan), nothing, tokens)

    def answer(num_kept: int, sets: Sequence[tuple[str, KeptImage]]) -> list[dict[int, Reply]]:
        started = time.process_time()
        replies = model.answer(sets)
        answered.cpu_sec[num_kept] = time.process_time() - started
        answered.generated[num_kept] = sum(map(len, replies))
        return replies

    full = answer(num_tokens, everything)
    for replies in full:
        for number, reply in replies.items():
            answered.full_Q[number] = prompts[number].score(str(reply.text))
    rankings = {run: model.rank(*run) for run in runs if run[0] != POOLING}
    answered.checked = check_equality(part, model, next(iter(images.values())), rankings)
    for budget, num_kept in enumerate(tokens):
        chosen: list[tuple[int, str, KeptImage]] = []
        for place, run in enumerate(runs):
            for image_id, image in model.encoded.items():
                factor = pooling_factor(image.grid, num_kept)
                if run in rankings:
                    ranking = rankings[run][image_id].ranking_K[:num_kept].tolist()
                    chosen.append((place, image_id, model.kept(image_id, ranking)))
                elif factor is not None:
                    chosen.append((place, image_id, model.merged(image_id, factor)))
        distinct = {kept.image_id: (image_id, kept) for _, image_id, kept in chosen}
        replies_of = dict(zip(distinct, answer(num_kept, list(distinct.values())), strict=True))
        scored = {
            name: {number: prompts[number].score(str(reply.text)) for number, reply in replies.items()}
            for name, replies in replies_of.items()
        }
        for place, _, kept in chosen:
            for number, score in scored[kept.image_id].items():
                answered.scores_RBQ[place, budget, number] = score
                answered.asked += 1
    return answered


def check_equality(part: Part, model: Model, image: Image.Image, rankings: dict[Run, dict[str, Selection]]) -> int:
    """With the budget `all` selectors differ in nothing, and pruning changes nothing.

    Each selector must rank every token of every image once. The first image, posed anew for each of them (and as
    pooled over squares of one token), must be answered as the untouched model answers it from its pixels, token for
    token. Returns how many questions were asked about it, each of all selectors.

    Raises:
        AssertionError: something differs.
    """
    for run, ranked in rankings.items():
        for image_id, selection in ranked.items():
            number = len(model.encoded[image_id].features_ND)
            assert sorted(selection.ranking_K.tolist()) == list(range(number)), f"{run} does not rank all of {image_id}"
    first = next(iter(model.encoded))
    whole = {run: model.kept(first, ranked[first].ranking_K.tolist()) for run, ranked in rankings.items()}
    whole[POOLING, 0] = model.merged(first, 1)
    # Under names of their own, or they would share the pass over their image.
    replies = model.answer([(first, replace(kept, image_id=str(run))) for run, kept in whole.items()])
    numbers = sorted(replies[0])
    expected = stock_answers(part.model, image, [model.prompts[number].text for number in numbers])
    for run, by_number in zip(whole, replies, strict=True):
        answers = [str(by_number[number].text) for number in numbers]
        assert answers == expected, f"{run} with all tokens answers {answers}, the untouched model {expected}"
    return len(numbers)


def stock_answers(path: str, image: Image.Image, texts: Sequence[str]) -> list[str]:
    """What the checkpoint answers by itself, from the picture."""
    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    answers = []
    for text in texts:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        rendered = processor.apply_chat_template([message], add_generation_prompt=True)
        inputs = processor(images=image, text=rendered, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        generated = output[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(generated, skip_special_tokens=True))
    return answers
