"""Trains projector and language model on the frozen tower's features, mostly on random subsets of the visual tokens.

A language model that always sees the full grid learns what share of it is background and cannot count on half of it;
one that has seen every number of tokens depends on WHICH tokens it is given.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import tiny_model
from features import feature_array
from packing import answer_logits, pack_questions, teacher_forced_accuracy
from questions import ONE_WORD_TYPES, sample_questions
from scene_data import SceneArrays
from scenes import NUM_TOKENS

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


class LanguageTrainer:
    """Projector, language model and their optimizers, advanced step by step."""

    def __init__(self, settings: LanguageSettings, work_dir: Path) -> None:
        tiny_model.use_fixed_threads()
        self.settings, self.path = settings, work_dir / f"language-seed{settings.seed}.pt"
        self.scenes, self.features = SceneArrays(work_dir, "train"), feature_array(work_dir, "train")
        self.objects = self.scenes.objects[: len(self.features)]
        self.noise = settings.feature_noise * float(self.features[:64].astype(np.float32).std())
        self.model = tiny_model.build_model(settings.seed)
        self.model.model.vision_tower.load_state_dict(torch.load(work_dir / "tower-settled.pt")["tower"])
        self.model.model.vision_tower.requires_grad_(False)
        tiny_model.use_training_attention(self.model.model.language_model)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        self.optimizers = tiny_model.build_optimizers(named, learning_rate=settings.learning_rate)
        self.step = 0
        if self.path.exists():
            state = torch.load(self.path)
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def save(self) -> None:
        """Writes the checkpoint."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"step": self.step, "model": self.model.state_dict(), "optimizers": optimizers}
        tiny_model.save_atomically(state, self.path)

    def loss(self, indices: np.ndarray) -> torch.Tensor:
        """The loss of one batch of scenes, weighted mean over the answers' tokens."""
        settings = self.settings
        indices = np.sort(indices)
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
        return (losses * weights).sum() / weights.sum()

    def run(self, *, stop_step: int | None = None, log_every: int = 50) -> None:
        """Trains up to `stop_step` (default: the end), writing checkpoints on the way."""
        settings = self.settings
        stop_step = settings.num_steps if stop_step is None else stop_step
        started, first, mean_loss = time.monotonic(), self.step, 0.0
        for indices in tiny_model.batches(
            len(self.features), settings.batch_size, seed=settings.seed, start_step=self.step, num_steps=stop_step
        ):
            rate = tiny_model.learning_rate_at(self.step, peak=settings.learning_rate, num_steps=settings.num_steps)
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
            loss = self.loss(indices)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            mean_loss += loss.item() / log_every
            if self.step % log_every == 0:
                speed = (self.step - first) * settings.batch_size / (time.monotonic() - started)
                print(f"language step {self.step} loss {mean_loss:.4f} {speed:.0f} images/s", flush=True)
                mean_loss = 0.0
            if self.step % settings.checkpoint_every == 0 or self.step == settings.num_steps:
                self.save()


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
