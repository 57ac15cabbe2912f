"""Asks a checkpoint held-out questions through `generate` on decoded JPEGs, with all and with some visual tokens."""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from questions import ONE_WORD_TYPES, Question, sample_questions
from scenes import NUM_TOKENS, make_scene
from train_language import random_subset

_LIMITS = dict.fromkeys(ONE_WORD_TYPES, 1)
_SUBSETS = {"random 12.5 %": NUM_TOKENS // 8, "random 50 %": NUM_TOKENS // 2}


@dataclass(frozen=True)
class AskedQuestion:
    """A question and the number of its image."""

    image: int
    question: Question


def heldout_questions(num_scenes: int, *, captions: bool = False) -> tuple[list[Image.Image], list[AskedQuestion]]:
    """The first held-out scenes, decoded, and one question of each type that they allow (or their captions)."""
    images, asked = [], []
    for index in range(num_scenes):
        scene = make_scene("heldout", index)
        images.append(Image.fromarray(scene.pixels()))
        limits = {"caption": 1} if captions else _LIMITS
        questions = sample_questions(scene.objects, np.random.default_rng([41, index]), limits=limits)
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
    def project(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """The projected visual tokens of raw images, (N, 256, 128)."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            pixels = self.processor.image_processor(list(images[start : start + self.batch_size]), return_tensors="pt")
            parts += self.model.get_image_features(**pixels, return_dict=True).pooler_output
        return torch.stack(parts)

    @torch.inference_mode()
    def answer_from_tokens(self, visual: torch.Tensor, kept: torch.Tensor, asked: Sequence[AskedQuestion]) -> list[str]:
        """Answers from the kept tokens alone: visual (N, 256, 128), kept indices (N, K)."""
        answers: list[str] = []
        tokenizer = self.processor.tokenizer
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


def evaluate(model_dir: Path, *, num_scenes: int, num_captions: int, seeds: Sequence[int]) -> dict[str, object]:
    """All measurements, as written to results.json."""
    answerer = Answerer(model_dir)
    images, asked = heldout_questions(num_scenes)
    started = time.monotonic()
    full = exact_match(answerer.answer(images, asked), asked)
    seconds = time.monotonic() - started
    print(f"all tokens: {full}", flush=True)
    visual = answerer.project(images)
    subsets: dict[str, dict[str, dict[str, float]]] = {}
    for name, num_kept in _SUBSETS.items():
        for seed in seeds:
            kept = torch.from_numpy(random_subset(np.random.default_rng([seed, num_kept]), num_scenes, num_kept))
            answers = answerer.answer_from_tokens(visual, kept, asked)
            subsets.setdefault(name, {})[f"seed {seed}"] = exact_match(answers, asked)
            print(f"{name}, seed {seed}: {subsets[name][f'seed {seed}']}", flush=True)
    caption_images, captions = heldout_questions(num_captions, captions=True)
    return {
        "num_scenes": num_scenes,
        "num_questions": len(asked),
        "num_questions_by_type": {kind: sum(a.question.type == kind for a in asked) for kind in ONE_WORD_TYPES},
        "exact_match_percent": {"all tokens": full, **subsets},
        "caption_exact_match_percent": exact_match(answerer.answer(caption_images, captions), captions)["all"],
        "num_captions": num_captions,
        "answering_sec_all_tokens": round(seconds, 1),
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "num_cpus": os.cpu_count(),
    }


def print_table(results: dict) -> None:
    """One line per token set: exact match of all questions and by type."""
    print(f"{results['num_questions']} one-word questions, {results['num_scenes']} held-out scenes, exact match in %")
    print(f"{'':24}{'all':>8}" + "".join(f"{kind:>10}" for kind in ONE_WORD_TYPES))
    rows = {"all tokens": results["exact_match_percent"]["all tokens"]}
    for name in _SUBSETS:
        rows |= {f"{name}, {seed}": row for seed, row in results["exact_match_percent"][name].items()}
    for name, row in rows.items():
        print(f"{name:24}{row['all']:8.2f}" + "".join(f"{row[kind]:10.2f}" for kind in ONE_WORD_TYPES))
    print(f"captions (all objects right, {results['num_captions']}): {results['caption_exact_match_percent']:.2f}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).resolve().parent.parent / "tiny-llava")
    parser.add_argument("--num-scenes", type=int, default=380)
    parser.add_argument("--num-captions", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    args = parser.parse_args()
    results = evaluate(args.model, num_scenes=args.num_scenes, num_captions=args.num_captions, seeds=args.seeds)
    print_table(results)
    if args.output:
        command = "python " + shlex.join(sys.argv)
        args.output.write_text(json.dumps({"command": command, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
