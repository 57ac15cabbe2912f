"""Trains projector and language model on the frozen tower's features, mostly on random subsets of the visual tokens.

A language model that always sees the full grid learns what share of it is background and cannot count on half of it;
one that has seen every number of tokens depends on WHICH tokens it is given.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import tiny_model
from features import feature_array
from packing import answer_logits, pack_questions, teacher_forced_accuracy
from questions import ONE_WORD_TYPES, sample_questions
from scene_data import SceneArrays
from scenes import NUM_TOKENS
from stage_trainer import StageTrainer

QUESTION_LIMITS = {"color": 2, "shape": 2, "digit": 2, "count": 3, "exist": 2, "relation": 2}


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of the language stage."""

    num_steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 1
    dropped_share: float = 0.7
    min_kept_share: float = 0.05
    no_bos_share: float = 0.15
    caption_share: float = 0.3
    feature_noise: float = 0.05
    checkpoint_every: int = 250


def kept_tokens(rng: np.random.Generator, batch_size: int, settings: LanguageSettings) -> np.ndarray:
    """Token indices (B, K) in raster order: all of them, or as many as a log-uniform draw says, uniformly chosen."""
    if rng.random() >= settings.dropped_share:
        return np.broadcast_to(np.arange(NUM_TOKENS), (batch_size, NUM_TOKENS))
    share = math.exp(rng.uniform(math.log(settings.min_kept_share), 0.0))
    return random_subset(rng, batch_size, max(1, round(share * NUM_TOKENS)))


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
        kept = kept_tokens(rng, len(indices), settings)
        limits = dict(QUESTION_LIMITS, caption=int(rng.random() < settings.caption_share))
        asked = [sample_questions(self.scenes.scene_objects(i), rng, limits=limits) for i in indices]
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
    """Teacher-forced accuracy on validation scenes with all, half and an eighth of the tokens, as one line each."""
    scenes, features = SceneArrays(work_dir, "validation"), feature_array(work_dir, "validation")
    rng = np.random.default_rng(3)
    limits = dict(QUESTION_LIMITS, caption=1)
    asked = [sample_questions(scenes.scene_objects(i), rng, limits=limits) for i in range(num_scenes)]
    visual = trainer.model.model.multi_modal_projector(torch.tensor(features[:num_scenes]).float())
    lines = []
    for num_kept in (NUM_TOKENS, NUM_TOKENS // 2, NUM_TOKENS // 8):
        kept = torch.from_numpy(random_subset(rng, num_scenes, num_kept))
        rows = visual.gather(1, kept[..., None].expand(-1, -1, visual.shape[-1]))
        accuracy = teacher_forced_accuracy(trainer.model, rows, asked)
        mean = sum(accuracy[kind] for kind in ONE_WORD_TYPES) / len(ONE_WORD_TYPES)
        shown = " ".join(f"{kind} {value:.3f}" for kind, value in accuracy.items())
        lines.append(f"language step {trainer.step} with {num_kept} tokens: one-word {mean:.3f} ({shown})")
    return "\n".join(lines)


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--language-seed", type=int, default=LanguageSettings.seed)
    parser.add_argument("--num-steps", type=int, default=LanguageSettings.num_steps)
    parser.add_argument("--validate-every", type=int, default=1000)
    args = parser.parse_args()
    trainer = LanguageTrainer(LanguageSettings(num_steps=args.num_steps, seed=args.language_seed), args.work_dir)
    while trainer.step < args.num_steps:
        next_stop = (trainer.step // args.validate_every + 1) * args.validate_every
        trainer.run(stop_step=min(next_stop, args.num_steps))
        print(validate(trainer, args.work_dir), flush=True)


if __name__ == "__main__":
    main()
