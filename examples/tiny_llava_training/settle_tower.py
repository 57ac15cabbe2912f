"""Makes every patch speak of its own object only, before the tower is frozen.

A tower trained to name objects still lets attention carry them into background patches, and a language model learns to
read them there: then it hardly matters which tokens are kept. Here the tower learns to give features that its own
dense labels explain: a least-squares fit of the trained tower's features on class, colour and place is the target, one
and the same vector for all background.
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
from scene_data import SceneArrays
from scenes import COLORS, IMAGE_SIZE_PX
from train_tower import NUM_CLASSES, DenseHeads, patch_accuracy, place_targets, presence_targets


@dataclass(frozen=True)
class SettleSettings:
    """Settings of this stage."""

    num_steps: int = 500
    batch_size: int = 24
    learning_rate: float = 1e-3
    seed: int = 2
    label_weight: float = 0.3
    fit_scenes: int = 400
    checkpoint_every: int = 100


def label_code(classes: torch.Tensor, centers_px: torch.Tensor) -> torch.Tensor:
    """What a patch may tell, (B, 256, 46): class, colour and, for objects, place with waves; background is constant."""
    places = place_targets(centers_px)
    angle = (centers_px / IMAGE_SIZE_PX)[..., None] * math.pi * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    waves = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    on_object = (classes[..., :1] > 0).float()
    kinds = functional.one_hot(classes[..., 0], NUM_CLASSES).float()
    colors = functional.one_hot(classes[..., 1], 1 + len(COLORS)).float()
    return torch.cat([kinds, colors, torch.cat([places, waves], dim=-1) * on_object], dim=-1)


class TowerSettler:
    """The trained tower and its heads, drawn towards the fitted targets step by step."""

    def __init__(self, settings: SettleSettings, scenes: SceneArrays, work_dir: Path) -> None:
        tiny_model.use_fixed_threads()
        self.settings, self.scenes, self.path = settings, scenes, work_dir / "tower-settled.pt"
        self.tower = tiny_model.build_model(0).model.vision_tower
        tiny_model.use_training_attention(self.tower)
        self.heads = DenseHeads()
        trained = torch.load(work_dir / "tower.pt")
        self.tower.load_state_dict(trained["tower"])
        self.heads.load_state_dict(trained["heads"])
        named = [*self.tower.named_parameters(prefix="tower"), *self.heads.named_parameters(prefix="heads")]
        self.parameters = [parameter for _, parameter in named]
        self.optimizers = tiny_model.build_optimizers(named, learning_rate=settings.learning_rate)
        self.step = 0
        if self.path.exists():
            state = torch.load(self.path)
            self.step, self.fit, self.scale = state["step"], state["fit"], state["scale"]
            self.tower.load_state_dict(state["tower"])
            self.heads.load_state_dict(state["heads"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        else:
            self.fit, self.scale = self._fit_targets()

    def _labels(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.scenes.classes[indices]).long(), torch.tensor(self.scenes.centers[indices]).float()

    @torch.no_grad()
    def _fit_targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Least squares of features on label codes, (46, 128), and the features' mean variance."""
        codes, features = [], []
        for start in range(0, min(self.settings.fit_scenes, len(self.scenes)), 50):
            indices = np.arange(start, min(start + 50, len(self.scenes)))
            codes.append(label_code(*self._labels(indices)).flatten(0, 1))
            pixels = tiny_model.normalized_pixels(self.scenes.images[indices])
            features.append(tiny_model.patch_features(self.tower, pixels)[0].flatten(0, 1))
        code, feature = torch.cat(codes).double(), torch.cat(features).double()
        ridge = 1e-3 * len(code) * torch.eye(code.shape[1], dtype=torch.float64)
        fit = torch.linalg.solve(code.T @ code + ridge, code.T @ feature)
        return fit.float(), feature.var(dim=0).mean().float()

    def save(self) -> None:
        """Writes the checkpoint."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"step": self.step, "fit": self.fit, "scale": self.scale, "tower": self.tower.state_dict()}
        tiny_model.save_atomically({**state, "heads": self.heads.state_dict(), "optimizers": optimizers}, self.path)

    def loss(self, indices: np.ndarray) -> tuple[torch.Tensor, list[float]]:
        """The loss of one batch, and the share of variance off target on background and on objects."""
        indices = np.sort(indices)
        generator = tiny_model.step_generator(self.settings.seed, self.step)
        pixels = tiny_model.normalized_pixels(self.scenes.images[indices])
        pixels = pixels * (1 + 0.1 * torch.randn(len(pixels), 1, 1, 1, generator=generator))
        pixels = pixels + 0.1 * torch.randn(len(pixels), 3, 1, 1, generator=generator)
        classes, centers = self._labels(indices)
        with torch.autocast("cpu", torch.bfloat16):
            features, hidden = tiny_model.patch_features(self.tower, pixels)
            last = self.tower.encoder.layers[-1](hidden, attention_mask=None)
            presence = self.heads.presence_head(self.tower.post_layernorm(last[:, 0])).float()
            class_logits = self.heads.class_head(features).flatten(0, 1).float()
            color_logits = self.heads.color_head(features).flatten(0, 1).float()
        on_object = classes[..., 0] > 0
        off_target = (features.float() - label_code(classes, centers) @ self.fit).square().mean(-1) / self.scale
        background, objects = off_target[~on_object].mean(), off_target[on_object].mean()
        labels = functional.cross_entropy(class_logits, classes[..., 0].flatten())
        labels = labels + 0.5 * functional.cross_entropy(color_logits, classes[..., 1].flatten())
        present = presence_targets(self.scenes.objects[indices])
        labels = labels + 2 * functional.binary_cross_entropy_with_logits(presence, present)
        return self.settings.label_weight * labels + background + objects, [background.item(), objects.item()]

    def run(self, *, stop_step: int | None = None, log_every: int = 25) -> None:
        """Trains up to `stop_step` (default: the end), writing checkpoints on the way."""
        settings = self.settings
        stop_step = settings.num_steps if stop_step is None else stop_step
        started, first, means = time.monotonic(), self.step, np.zeros(2)
        for indices in tiny_model.batches(
            len(self.scenes), settings.batch_size, seed=settings.seed, start_step=self.step, num_steps=stop_step
        ):
            warm = min(1.0, (self.step + 1) / 20)
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = settings.learning_rate * warm * (1 - self.step / settings.num_steps)
                optimizer.zero_grad()
            loss, off_target = self.loss(indices)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            means += np.array(off_target) / log_every
            if self.step % log_every == 0:
                speed = (self.step - first) * settings.batch_size / (time.monotonic() - started)
                shares = f"off target: background {means[0]:.4f}, objects {means[1]:.4f}"
                print(f"settle step {self.step} {shares} {speed:.0f} images/s", flush=True)
                means = np.zeros(2)
            if self.step % settings.checkpoint_every == 0 or self.step == settings.num_steps:
                self.save()


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    args = parser.parse_args()
    settler = TowerSettler(SettleSettings(), SceneArrays(args.work_dir, "train"), args.work_dir)
    settler.run()
    print(f"settled tower: patch accuracy {patch_accuracy(settler, SceneArrays(args.work_dir, 'validation'))}")


if __name__ == "__main__":
    main()
