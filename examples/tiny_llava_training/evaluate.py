"""Asks a checkpoint held-out questions through `generate` on decoded JPEGs, with all and with some visual tokens.

    python evaluate.py --model ../tiny-llava --output results.json

What is asked of the model (BARS) is compared with what was measured; the last lines say what it misses.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pipeline.grading.metrics.object_f1 import object_score
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from zoo_ops import estimate_sensitivity, rank_tokens

from questions import ONE_WORD_TYPES, SHORT_TYPES, Question, sample_questions
from scene_data import STYLES
from scenes import NUM_TOKENS
from train_language import random_subset

ALL_TOKENS = "all tokens"
SELECTORS = ("zoo", "divprune")
SHARES = {"50 %": NUM_TOKENS // 2, "25 %": NUM_TOKENS // 4, "12.5 %": NUM_TOKENS // 8}
RANDOM_SHARES = ("50 %", "12.5 %")
CAPTION_SETS = (ALL_TOKENS, "zoo 25 %")

# What the bundled model must do on plain scenes, in percent and points.
BARS: dict[str, Any] = {
    "all tokens, at least": 97,
    "all tokens, every type at least": 92,
    "selector loses at most, every type but counting": 2,
    "selector loses at most in counting": {"50 %": 3, "25 %": 9, "12.5 %": 15},
    "random 12.5 % loses at least": 15,
    "captions' object F1, at least": {ALL_TOKENS: 90, "zoo 25 %": 85},
}


@dataclass(frozen=True)
class AskedQuestion:
    """A question and the number of its image."""

    image: int
    question: Question


def heldout_questions(
    num_scenes: int, *, style: str = "plain", captions: bool = False
) -> tuple[list[Image.Image], list[AskedQuestion]]:
    """The first held-out scenes of a style, decoded, and one question of each type they allow (or their captions)."""
    images, asked = [], []
    limits = {"caption": 1} if captions else dict.fromkeys(SHORT_TYPES, 1)
    for index in range(num_scenes):
        scene = STYLES[style]("heldout", index)
        images.append(Image.fromarray(scene.pixels()))
        rng = np.random.default_rng([41, index])
        questions = sample_questions(scene.objects, rng, limits=limits, signs=scene.signs)
        asked += [AskedQuestion(index, question) for question in questions]
    return images, asked


class Answerer:
    """A checkpoint that answers questions in batches, greedily."""

    def __init__(self, model_dir: Path, *, batch_size: int = 64) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(model_dir).eval()
        self.processor = LlavaProcessor.from_pretrained(model_dir)
        self.batch_size = batch_size

    def prompt(self, question: str) -> str:
        """The question in the chat template."""
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        return self.processor.apply_chat_template([message], add_generation_prompt=True)

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], asked: Sequence[AskedQuestion]) -> list[str]:
        """Answers from raw images, all tokens."""
        answers: list[str] = []
        for start in range(0, len(asked), self.batch_size):
            batch = asked[start : start + self.batch_size]
            inputs = self.processor(
                images=[images[a.image] for a in batch],
                text=[self.prompt(a.question.prompt) for a in batch],
                padding=True,
                return_tensors="pt",
            )
            answers += self._decode(self.model.generate(**inputs), inputs["input_ids"].shape[1])
        return answers

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the projector gets and gives for raw images, both (N, 256, 128)."""
        features, projected = [], []
        config, inner = self.model.config, self.model.model
        for start in range(0, len(images), self.batch_size):
            pixels = self.processor.image_processor(list(images[start : start + self.batch_size]), return_tensors="pt")
            hidden = inner.vision_tower(**pixels, output_hidden_states=True).hidden_states[config.vision_feature_layer]
            features.append(hidden[:, 1:])
            projected.append(inner.multi_modal_projector(features[-1]))
        return torch.cat(features), torch.cat(projected)

    @torch.inference_mode()
    def rankings(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The projected tokens (N, 256, 128) and, for each of SELECTORS, all tokens in its order (N, 256)."""
        features, projected = self.encode(images)
        part = self.model.model.multi_modal_projector
        sensitivity = estimate_sensitivity(features, torch.nn.Sequential(part.linear_1, part.act, part.linear_2))
        orders = {
            name: rank_tokens(projected, sensitivity, max_tokens=NUM_TOKENS, selector=name).indices_BK
            for name in SELECTORS
        }
        return projected, orders

    @torch.inference_mode()
    def answer_from_tokens(self, visual: torch.Tensor, kept: torch.Tensor, asked: Sequence[AskedQuestion]) -> list[str]:
        """Answers from the kept tokens alone: visual (N, 256, 128), kept indices (N, K) in any order."""
        answers: list[str] = []
        tokenizer = self.processor.tokenizer
        kept = kept.sort(dim=1).values
        for start in range(0, len(asked), self.batch_size):
            batch = asked[start : start + self.batch_size]
            placeholders = self.processor.image_token * kept.shape[1]
            text = [self.prompt(a.question.prompt).replace(self.processor.image_token, placeholders) for a in batch]
            inputs = tokenizer(text, padding=True, return_tensors="pt")
            features = BaseModelOutputWithPooling(pooler_output=[visual[a.image, kept[a.image]] for a in batch])
            output = self.model.generate(**inputs, mm_encoder_outputs={"image": features})
            answers += self._decode(output, inputs["input_ids"].shape[1])
        return answers

    def _decode(self, output: torch.Tensor, prompt_length: int) -> list[str]:
        return self.processor.tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)


def exact_match(answers: Sequence[str], asked: Sequence[AskedQuestion]) -> dict[str, float]:
    """Percentage of answers equal to the reference, of all and by type."""
    hits: dict[str, list[bool]] = {"all": []}
    for answer, item in zip(answers, asked, strict=True):
        hit = answer.strip() == item.question.answer
        hits["all"].append(hit)
        hits.setdefault(item.question.type, []).append(hit)
    return {kind: round(100 * sum(values) / len(values), 2) for kind, values in hits.items()}


def caption_scores(answers: Sequence[str], asked: Sequence[AskedQuestion]) -> dict[str, float]:
    """Means over captions of objects' precision, recall and F1, and the share that is exact, in percent."""
    scores = [object_score(answer, item.question.answer) for answer, item in zip(answers, asked, strict=True)]
    exact = [answer.strip() == item.question.answer for answer, item in zip(answers, asked, strict=True)]
    columns = {
        "precision": [score.precision for score in scores],
        "recall": [score.recall for score in scores],
        "f1": [score.f1 for score in scores],
        "exact": exact,
    }
    return {name: round(100 * float(np.mean(values)), 2) for name, values in columns.items()}


def evaluate_style(
    answerer: Answerer, style: str, *, num_scenes: int, num_captions: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """All measurements on the held-out scenes of one style."""
    images, asked = heldout_questions(num_scenes, style=style)
    started = time.monotonic()
    rows = {ALL_TOKENS: exact_match(answerer.answer(images, asked), asked)}
    seconds = time.monotonic() - started
    visual, orders = answerer.rankings(images)
    kept = {f"{name} {share}": order[:, :count] for share, count in SHARES.items() for name, order in orders.items()}
    for share in RANDOM_SHARES:
        for seed in seeds:
            subset = random_subset(np.random.default_rng([seed, SHARES[share]]), num_scenes, SHARES[share])
            kept[f"random {share}, seed {seed}"] = torch.from_numpy(subset)
    for name, indices in kept.items():
        rows[name] = exact_match(answerer.answer_from_tokens(visual, indices, asked), asked)
        print(f"{style}, {name}: {rows[name]}", flush=True)
    images, captions = heldout_questions(num_captions, style=style, captions=True)
    visual, orders = answerer.rankings(images)
    captioned = {
        ALL_TOKENS: answerer.answer(images, captions),
        CAPTION_SETS[1]: answerer.answer_from_tokens(visual, orders["zoo"][:, : SHARES["25 %"]], captions),
    }
    types = Counter(item.question.type for item in asked)
    return {
        "num_scenes": num_scenes,
        "num_questions": len(asked),
        "num_questions_by_type": {kind: types[kind] for kind in SHORT_TYPES if types[kind]},
        "commonest_answer_percent": _commonest(asked),
        "exact_match_percent": rows,
        "num_captions": num_captions,
        "captions_percent": {name: caption_scores(answers, captions) for name, answers in captioned.items()},
        "answering_sec_all_tokens": round(seconds, 1),
    }


def _commonest(asked: Sequence[AskedQuestion]) -> dict[str, float]:
    shares = {}
    for kind in SHORT_TYPES:
        answers = Counter(item.question.answer for item in asked if item.question.type == kind)
        if answers:
            shares[kind] = round(100 * answers.most_common(1)[0][1] / answers.total(), 2)
    return shares


def shortfalls(plain: dict[str, Any]) -> list[str]:
    """What the measurements on plain scenes miss of BARS, one sentence each."""
    rows, said = plain["exact_match_percent"], []

    def must(met: bool, what: str) -> None:
        if not met:
            said.append(what)

    full = rows[ALL_TOKENS]
    must(full["all"] >= BARS["all tokens, at least"], f"all tokens: {full['all']} %")
    for kind in ONE_WORD_TYPES:
        must(full[kind] >= BARS["all tokens, every type at least"], f"all tokens, {kind}: {full[kind]} %")
        for name in SELECTORS:
            for share in SHARES:
                allowed = BARS["selector loses at most, every type but counting"]
                if kind == "count":
                    allowed = BARS["selector loses at most in counting"][share]
                lost = round(full[kind] - rows[f"{name} {share}"][kind], 2)
                must(lost <= allowed, f"{name} {share}, {kind}: loses {lost} points, {allowed} allowed")
    for name, row in rows.items():
        if name.startswith("random 12.5 %"):
            lost = round(full["all"] - row["all"], 2)
            must(lost >= BARS["random 12.5 % loses at least"], f"{name}: loses {lost} points only")
    for name, least in BARS["captions' object F1, at least"].items():
        score = plain["captions_percent"][name]["f1"]
        must(score >= least, f"captions, {name}: F1 {score} %")
    return said


def evaluate(model_dir: Path, *, num_scenes: int, num_captions: int, seeds: Sequence[int]) -> dict[str, Any]:
    """All measurements, as written to results.json."""
    answerer = Answerer(model_dir)
    amounts: dict[str, Any] = {"num_scenes": num_scenes, "num_captions": num_captions, "seeds": seeds}
    by_style = {style: evaluate_style(answerer, style, **amounts) for style in STYLES}
    return {
        **by_style,
        "misses": shortfalls(by_style["plain"]),
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "num_cpus": os.cpu_count(),
    }


def markdown(results: dict[str, Any]) -> str:
    """The tables of README.md: exact match by token set and type, then captions, for each style of scenes."""
    lines = []
    for style in STYLES:
        measured = results[style]
        kinds = ["all", *measured["num_questions_by_type"]]
        rows = measured["exact_match_percent"]
        lines += [f"| {style}, exact match in % | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
        lines += [
            f"| {name} | " + " | ".join(f"{row[kind]:.1f}" for kind in kinds) + " |" for name, row in rows.items()
        ]
        lines += ["", f"| {style}, captions in % | precision | recall | F1 | exact |", "|---|---|---|---|---|"]
        for name, row in measured["captions_percent"].items():
            lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row.values()) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).resolve().parent.parent / "tiny-llava")
    parser.add_argument("--num-scenes", type=int, default=380)
    parser.add_argument("--num-captions", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument("--show", type=Path, help="measure nothing, print the tables of earlier results")
    args = parser.parse_args()
    if args.show:
        print(markdown(json.loads(args.show.read_text())))
        return
    results = evaluate(args.model, num_scenes=args.num_scenes, num_captions=args.num_captions, seeds=args.seeds)
    print(markdown(results))
    print("misses: " + ("; ".join(results["misses"]) or "nothing"))
    if args.output:
        command = "python " + shlex.join(sys.argv)
        args.output.write_text(json.dumps({"command": command, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
