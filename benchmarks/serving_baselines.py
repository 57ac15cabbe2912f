"""What people do today with the same model and prompts: the baselines of benchmarks/serving.py.

All of them run Transformers' own LLaVA-NeXT, whole, greedy, in float32. A picture is read and prepared once however
many prompts ask about it, and prompts have the same length, so that nobody pads.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import LlavaNextForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from zoo_ops import draw_directions
from zoo_ops.naive import finite_difference_naive, picks_published

DIRECTIONS, STEP_SIZE = 64, 0.01  # of the published method
TILES_ACROSS, TILES = 2, 5  # of a picture; the overview is one of them
TEMPLATE = "USER: <image>\n{prompt} ASSISTANT:"  # that answering takes where a checkpoint has none

Answers = dict[str, list[int]]  # new token ids by the prompt's id
Choose = Callable[[int], Tensor]  # number of the image -> its kept tokens


class Clock:
    """Seconds by part. What runs inside of a part belongs to it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._depth, self._began = 0, 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block is this part."""
        self._enter()
        try:
            yield
        finally:
            self._leave(name)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every tower, projector and language model that runs meanwhile is a part, whoever holds it."""
        before = register_module_forward_pre_hook(lambda module, _: self._enter() if _watched(module) else None)
        after = register_module_forward_hook(self._ran, with_kwargs=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _ran(self, module: Any, inputs: Any, named: dict[str, Any], _output: Any) -> None:
        if isinstance(module, LlamaModel):
            self._leave("prefill" if named["inputs_embeds"].shape[1] > 1 else "decode")
        elif _watched(module):
            self._leave("encode")

    def _enter(self) -> None:
        if not self._depth:
            self._began = time.perf_counter()
        self._depth += 1

    def _leave(self, name: str) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds[name] += time.perf_counter() - self._began


def _watched(module: Any) -> bool:
    return isinstance(module, CLIPVisionModel | LlavaNextMultiModalProjector | LlamaModel)


@dataclass(frozen=True)
class Asked:
    """A picture and what is asked about it, ids and texts."""

    picture: Path
    prompts: Sequence[tuple[str, str]]


def asked_in(manifest: Path) -> list[Asked]:
    """What a manifest of `save_corpus` asks."""
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [
        Asked(manifest.parent / record["image"], [(one["id"], one["prompt"]) for one in record["prompts"]])
        for record in records
    ]


@dataclass(frozen=True)
class Limits:
    """What may run together, the same on every side."""

    prompts: int
    tokens: int

    def rows(self, tokens: int, new_tokens: int) -> int:
        """Prompts of so many tokens in one batch."""
        return max(1, min(self.prompts, self.tokens // (tokens + new_tokens)))


class Stock:
    """The untouched model, and three ways to answer with it."""

    def __init__(self, model: str, limits: Limits) -> None:
        self.model = LlavaNextForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
        self._processor = LlavaNextImageProcessorPil.from_pretrained(model)
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
        self._limits = limits
        self._image_token = self.model.config.image_token_id
        self._newline = self.model.model.image_newline
        vision = self.model.config.vision_config
        self._tile = vision.image_size
        numbers = torch.arange(TILES * (self._tile // vision.patch_size) ** 2, dtype=torch.float64)
        # Which token of all tiles stands where in the sequence, and a newline where there is none.
        order_L = self._packed(numbers.view(TILES, -1, 1), numbers.new_full((1,), torch.nan)).squeeze(1)
        self._newlines_L, self._order_N = order_L.isnan(), order_L[~order_L.isnan()].long()
        self._visual = len(order_L)

    @torch.inference_mode()
    def untouched(self, asked: Sequence[Asked], new_tokens: int, clock: Clock) -> Answers:
        """Prompts in batches, each with its image: `generate` as it is, which encodes an image for every prompt."""
        answers: Answers = {}
        rows = [(one.picture, name, self._ids(text, self._visual)) for one in asked for name, text in one.prompts]
        size = self._limits.rows(len(rows[0][2]), new_tokens)
        prepared: dict[Path, dict[str, Tensor]] = {}
        for begin in range(0, len(rows), size):
            pictures, names, ids = zip(*rows[begin : begin + size], strict=True)
            prepared = {one: prepared.get(one) or self._prepared(one, clock) for one in dict.fromkeys(pictures)}
            inputs = {name: torch.cat([prepared[one][name] for one in pictures]) for name in prepared[pictures[0]]}
            self._generate(answers, names, new_tokens, input_ids=torch.tensor(ids), **inputs)
        return answers

    @torch.inference_mode()
    def shared(self, asked: Sequence[Asked], new_tokens: int, clock: Clock) -> Answers:
        """An image and the text before it are read once, and the cache is copied to each of its prompts."""
        answers: Answers = {}
        for one in asked:
            inputs = self._prepared(one.picture, clock)
            ids = torch.tensor([self._ids(text, self._visual) for _, text in one.prompts])
            assert self._limits.rows(ids.shape[1], new_tokens) >= len(ids), "the prompts of an image fit into a batch"
            end = int((ids[0] == self._image_token).nonzero()[-1]) + 1
            cache = self.model(input_ids=ids[:1, :end], use_cache=True, logits_to_keep=1, **inputs).past_key_values
            cache.batch_repeat_interleave(len(ids))
            names = [name for name, _ in one.prompts]
            self._generate(answers, names, new_tokens, input_ids=ids, past_key_values=cache)
        return answers

    @torch.inference_mode()
    def in_request(
        self, asked: Sequence[Asked], new_tokens: int, clock: Clock, *, kept: int, choose: Choose | None = None
    ) -> Answers:
        """The published method for every prompt anew: encode, perturb, select, answer from the kept tokens.

        Sensitivities by the literal formula, two passes of the projector a direction, and the published selection in
        every tile, its cosines from one product, which is kinder than the published broadcasting. The language model
        then runs in batches like those of the others.

        Args:
            choose: the kept tokens of an image, in place of scoring and selecting.
        """
        answers: Answers = {}
        embed, waiting = self.model.get_input_embeddings(), []
        for number, one in enumerate(asked):
            for name, text in one.prompts:
                pixels = self._prepared(one.picture, clock)
                rows_TnD, projected_TnO = self._encoded(pixels)
                picks = choose(number) if choose else self.published(rows_TnD, projected_TnO, kept, clock)
                stays_L = self._newlines_L.clone()
                stays_L[(~stays_L).nonzero().squeeze(1)[picks]] = True
                visual_LO = self._packed(projected_TnO, self._newline)[stays_L]
                ids = self._ids(text, 1)
                place = ids.index(self._image_token)
                before, after = (embed(torch.tensor(part)) for part in (ids[:place], ids[place + 1 :]))
                waiting.append((name, torch.cat([before, visual_LO, after])))
        size = self._limits.rows(len(waiting[0][1]), new_tokens)
        for begin in range(0, len(waiting), size):
            names, embeds = zip(*waiting[begin : begin + size], strict=True)
            self._generate(answers, names, new_tokens, inputs_embeds=torch.stack(embeds))
        return answers

    def published(self, rows_TnD: Tensor, projected_TnO: Tensor, kept: int, clock: Clock) -> Tensor:
        """The tokens that the published method keeps, as many in every tile, by their places in the sequence."""
        tiles, per_tile, width = rows_TnD.shape
        with clock.part("score"):
            directions_MD = draw_directions(DIRECTIONS, width, seed=0)
            project = self.model.model.multi_modal_projector
            score_N = finite_difference_naive(rows_TnD.flatten(0, 1), project, directions_MD, step_size=STEP_SIZE)
        with clock.part("rank"):
            picks = []
            for tile, (projected_NO, tile_N) in enumerate(zip(projected_TnO, score_N.split(per_tile), strict=True)):
                unit_NO = torch.nn.functional.normalize(projected_NO, dim=-1)
                picks.append(
                    tile * per_tile + picks_published(1 - unit_NO @ unit_NO.T, tile_N, max_tokens=kept // tiles)
                )
        return torch.isin(self._order_N, torch.cat(picks)).nonzero().squeeze(1)

    def encoded(self, one: Asked) -> tuple[Tensor, Tensor]:
        """What goes into and comes out of the projector for a picture, by tile."""
        with torch.inference_mode():
            return self._encoded(self._prepared(one.picture, Clock()))

    def _encoded(self, pixels: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        config, model = self.model.config, self.model.model
        states = model.vision_tower(pixels["pixel_values"][0], output_hidden_states=True).hidden_states
        rows_TnD = states[config.vision_feature_layer][:, 1:]
        return rows_TnD, model.multi_modal_projector(rows_TnD)

    def _packed(self, rows_TnD: Tensor, newline_D: Tensor) -> Tensor:
        """Tokens of all tiles and newlines, in the order in which the language model sees them."""
        width, height = TILES_ACROSS * self._tile, TILES_ACROSS * self._tile
        strategy = self.model.config.vision_feature_select_strategy
        sizes_12 = torch.tensor([[height, width]])
        sequences, _ = self.model.model.pack_image_features([rows_TnD], sizes_12, strategy, image_newline=newline_D)
        return sequences[0]

    def _prepared(self, picture: Path, clock: Clock) -> dict[str, Tensor]:
        with clock.part("prepare"), Image.open(picture) as image:
            inputs = dict(self._processor(image.convert("RGB"), return_tensors="pt"))
        assert inputs["pixel_values"].shape[1] == TILES, "an overview and two by two tiles"
        return inputs

    def _ids(self, prompt: str, visual: int) -> list[int]:
        text = TEMPLATE.format(prompt=prompt).replace("<image>", "<image>" * visual)
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def _generate(self, answers: Answers, names: Sequence[str], new_tokens: int, **inputs: Any) -> None:
        given = inputs.get("input_ids", inputs.get("inputs_embeds"))
        mask = torch.ones(given.shape[:2], dtype=torch.int64)
        output = self.model.generate(attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, **inputs)
        answers.update(zip(names, output[:, -new_tokens:].tolist(), strict=True))
