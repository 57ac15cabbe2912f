"""Trains projector and language model on the frozen tower's features, mostly on subsets of the visual tokens.

A language model that always sees the full grid learns what share of it is background and cannot count on half of it.
One that has seen uniformly random subsets only learns how many tokens an object leaves, and cannot count what a
selector keeps. So subsets are drawn with random odds for every single thing in the image and for its background:
they favour no selector, and how many tokens a thing has says nothing about how many things there are. And what is
asked is about what the kept tokens show: a lost object is not there, so that no answer has to be guessed in training.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import tiny_model
from features import feature_array
from packing import answer_logits, pack_questions, teacher_forced_accuracy
from questions import QUESTION_TYPES, Question, sample_questions
from scene_data import STYLES, SceneArrays, positions_of, shown_by
from scenes import FIRST_CLUTTER, NO_THING, NUM_TOKENS
from stage_trainer import StageTrainer, stage_arguments

QUESTION_LIMITS = {
    "color": 2,
    "shape": 2,
    "digit": 2,
    "count": 4,
    "exist": 2,
    "relation": 3,
    "mark": 2,
    "number": 2,
    "caption": 1,
    "order": 1,
}
WHOLE_SPREADS = (0.0, 1.0, 3.0)  # standard deviations of the things' log-weights, one of them an image
BACKGROUND_SPREAD, CLUTTER_SPREAD = 4.0, 2.0


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of the language stage."""

    num_steps: int = 3000
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 1
    dropped_share: float = 0.75
    min_kept_share: float = 0.03
    no_bos_share: float = 0.15
    feature_noise: float = 0.05
    checkpoint_every: int = 250


def ask(scenes: SceneArrays, indices: np.ndarray, rng: np.random.Generator) -> list[list[Question]]:
    """Questions about each of these scenes, up to QUESTION_LIMITS of each type."""
    return [
        sample_questions(scenes.scene_objects(i), rng, limits=QUESTION_LIMITS, signs=scenes.scene_signs(i))
        for i in indices
    ]


def ask_about_kept(
    scenes: SceneArrays, indices: np.ndarray, kept: np.ndarray, rng: np.random.Generator
) -> list[list[Question]]:
    """Questions about each of these scenes that its kept tokens (B, K) can answer, with what they show as the truth."""
    asked = []
    for index, tokens in zip(indices, kept, strict=True):
        everything = scenes.scene_objects(index), scenes.scene_signs(index)
        objects, signs = shown_by(tokens, scenes.classes[index], scenes.centers[index], *everything)
        asked.append(sample_questions(objects, rng, limits=QUESTION_LIMITS, signs=signs))
    return asked


def kept_tokens(
    rng: np.random.Generator, wholes: np.ndarray, is_clutter: np.ndarray, settings: LanguageSettings
) -> np.ndarray:
    """Token indices (B, K) in raster order: all of them, or as many as a log-uniform draw says, by `weighted_subset`.

    wholes uint8 (B, 256): which thing each token shows, NO_THING on background; is_clutter bool (B, 256).
    """
    if rng.random() >= settings.dropped_share:
        return np.broadcast_to(np.arange(NUM_TOKENS), wholes.shape)
    share = math.exp(rng.uniform(math.log(settings.min_kept_share), 0.0))
    return weighted_subset(rng, wholes, is_clutter, max(1, round(share * NUM_TOKENS)))


def weighted_subset(rng: np.random.Generator, wholes: np.ndarray, is_clutter: np.ndarray, num_kept: int) -> np.ndarray:
    """Gumbel top-k: token indices (B, num_kept), each row in raster order, drawn with odds that are drawn themselves.

    Background, clutter and every single thing have log-weights of their own in each image, so that what is kept goes
    from uniform over things only to background only, and from every thing alike to one thing alone.
    """
    keys = rng.gumbel(size=wholes.shape)
    for row, (whole, clutter) in enumerate(zip(wholes, is_clutter, strict=True)):
        of_thing = rng.choice(WHOLE_SPREADS) * rng.standard_normal(NO_THING + 1)
        of_thing[NO_THING] = BACKGROUND_SPREAD * rng.standard_normal()
        keys[row] += of_thing[whole] + np.where(clutter, CLUTTER_SPREAD * rng.standard_normal(), 0.0)
    return np.sort(np.argsort(-keys, axis=1)[:, :num_kept], axis=1)


def random_subset(rng: np.random.Generator, num_images: int, num_kept: int) -> np.ndarray:
    """Uniformly random token indices (num_images, num_kept), each row in raster order."""
    return np.sort(rng.random((num_images, NUM_TOKENS)).argsort(axis=1)[:, :num_kept], axis=1)


class LanguageTrainer(StageTrainer):
    """Projector and language model on the settled tower's features."""

    name = "language"

    def __init__(self, settings: LanguageSettings, work_dir: Path) -> None:
        self.scenes, self.features = SceneArrays(work_dir, "train"), feature_array(work_dir, "train")
        super().__init__(settings, work_dir / f"language-seed{settings.seed}.pt", len(self.features))
        self.noise = settings.feature_noise * float(self.features[:64].astype(np.float32).std())
        self.model = tiny_model.build_model(settings.seed)
        self.model.model.vision_tower.load_state_dict(torch.load(work_dir / "tower-settled.pt")["tower"])
        self.model.model.vision_tower.requires_grad_(False)
        tiny_model.use_training_attention(self.model.model.language_model)
        self.begin({"model": self.model})

    def learning_rate(self) -> float:
        """Cosine over the whole stage."""
        settings = self.settings
        return tiny_model.learning_rate_at(self.step, peak=settings.learning_rate, num_steps=settings.num_steps)

    def loss(self, indices: np.ndarray) -> tuple[torch.Tensor, dict[str, float]]:
        """Weighted mean over the answers' tokens."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, self.step, 1])
        is_clutter = self.scenes.classes[indices, :, 0] >= FIRST_CLUTTER
        kept = kept_tokens(rng, self.scenes.wholes[indices], is_clutter, settings)
        asked = ask_about_kept(self.scenes, indices, kept, rng)
        packed = pack_questions(asked, num_tokens=kept.shape[1], with_bos=rng.random() >= settings.no_bos_share)
        features = torch.from_numpy(self.features[indices[:, None], kept]).float()
        generator = tiny_model.step_generator(settings.seed, self.step)
        features = features + self.noise * torch.randn(features.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = answer_logits(self.model, self.model.model.multi_modal_projector(features), packed)
        learnt = packed.targets >= 0
        weights = packed.weights[learnt]
        losses = functional.cross_entropy(logits.float(), packed.targets[learnt], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        return loss, {"loss": loss.item()}


@torch.no_grad()
def validate(trainer: LanguageTrainer, work_dir: Path, *, num_scenes: int = 200) -> str:
    """Teacher-forced accuracy on validation scenes with all, a quarter, an eighth of the tokens, as one line each."""
    scenes, features = SceneArrays(work_dir, "validation"), feature_array(work_dir, "validation")
    rng = np.random.default_rng(3)
    lines = []
    for style in STYLES:
        indices = positions_of(style, num_scenes)
        asked = ask(scenes, indices, rng)
        visual = trainer.model.model.multi_modal_projector(torch.from_numpy(features[indices]).float())
        order = rng.random((num_scenes, NUM_TOKENS))
        on_object = (scenes.classes[indices, :, 0] > 0) & (scenes.classes[indices, :, 0] < FIRST_CLUTTER)
        for name, score, num_kept in (
            ("all", order, NUM_TOKENS),
            ("random", order, NUM_TOKENS // 4),
            ("objects'", order + on_object, NUM_TOKENS // 4),
            ("objects'", order + on_object, NUM_TOKENS // 8),
        ):
            kept = torch.from_numpy(np.sort(np.argsort(-score, axis=1)[:, :num_kept], axis=1))
            rows = visual.gather(1, kept[..., None].expand(-1, -1, visual.shape[-1]))
            accuracy = teacher_forced_accuracy(trainer.model, rows, asked)
            shown = " ".join(f"{kind} {accuracy[kind]:.3f}" for kind in QUESTION_TYPES if kind in accuracy)
            lines.append(f"language step {trainer.step}, {style}, {num_kept} tokens ({name}): {shown}")
    return "\n".join(lines)


def main() -> None:
    """Command line of this stage."""
    parser = stage_arguments(__doc__, LanguageSettings.num_steps)
    parser.add_argument("--language-seed", type=int, default=LanguageSettings.seed)
    args = parser.parse_args()
    trainer = LanguageTrainer(LanguageSettings(num_steps=args.num_steps, seed=args.language_seed), args.work_dir)
    trainer.advance(args.stop_step, report_every=1000, report=lambda: validate(trainer, args.work_dir))


if __name__ == "__main__":
    main()
