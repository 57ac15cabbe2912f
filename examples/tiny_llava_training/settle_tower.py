"""Makes every patch speak of its own object only, before the tower is frozen.

A tower trained to name objects still lets attention carry them into background patches, and a language model learns to
read them there: then it hardly matters which tokens are kept. Here the tower learns to give features that its own
dense labels explain: a least-squares fit of the trained tower's features on class, colour and place is the target, one
and the same vector for all background.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import tiny_model
from scene_data import SceneArrays
from scenes import IMAGE_SIZE_PX, PATCH_CLASSES, PATCH_COLORS
from stage_trainer import StageTrainer, stage_arguments
from train_tower import DenseHeads, patch_accuracy, place_targets, presence_targets


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
    """What a patch may tell, (B, 256, 64): class, colour and, for things, place with waves; background is constant."""
    places = place_targets(centers_px)
    angle = (centers_px / IMAGE_SIZE_PX)[..., None] * math.pi * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    waves = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    on_object = (classes[..., :1] > 0).float()
    kinds = functional.one_hot(classes[..., 0], len(PATCH_CLASSES)).float()
    colors = functional.one_hot(classes[..., 1], len(PATCH_COLORS)).float()
    return torch.cat([kinds, colors, torch.cat([places, waves], dim=-1) * on_object], dim=-1)


class TowerSettler(StageTrainer):
    """The trained tower and its heads, drawn towards the fitted targets."""

    name = "settle"

    def __init__(self, settings: SettleSettings, scenes: SceneArrays, work_dir: Path) -> None:
        super().__init__(settings, work_dir / "tower-settled.pt", len(scenes))
        self.scenes = scenes
        self.tower = tiny_model.build_model(0).model.vision_tower
        tiny_model.use_training_attention(self.tower)
        self.heads = DenseHeads()
        trained = torch.load(work_dir / "tower.pt")
        self.tower.load_state_dict(trained["tower"])
        self.heads.load_state_dict(trained["heads"])
        constants = None if self.path.exists() else self._fit_targets()
        self.begin({"tower": self.tower, "heads": self.heads}, constants)

    def learning_rate(self) -> float:
        """A short warm-up, then a line down to zero."""
        settings = self.settings
        return settings.learning_rate * min(1.0, (self.step + 1) / 20) * (1 - self.step / settings.num_steps)

    def _labels(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.scenes.classes[indices]).long(), torch.tensor(self.scenes.centers[indices]).float()

    @torch.no_grad()
    def _fit_targets(self) -> dict[str, torch.Tensor]:
        """Least squares of features on label codes, (64, 128), and the features' mean variance."""
        codes, features = [], []
        for start in range(0, min(self.settings.fit_scenes, len(self.scenes)), 50):
            indices = np.arange(start, min(start + 50, len(self.scenes)))
            codes.append(label_code(*self._labels(indices)).flatten(0, 1))
            pixels = tiny_model.normalized_pixels(self.scenes.images[indices])
            features.append(tiny_model.patch_features(self.tower, pixels)[0].flatten(0, 1))
        code, feature = torch.cat(codes).double(), torch.cat(features).double()
        ridge = 1e-3 * len(code) * torch.eye(code.shape[1], dtype=torch.float64)
        fit = torch.linalg.solve(code.T @ code + ridge, code.T @ feature)
        return {"fit": fit.float(), "scale": feature.var(dim=0).mean().float()}

    def loss(self, indices: np.ndarray) -> tuple[torch.Tensor, dict[str, float]]:
        """Of the labels and of the share of variance off target, on background and on objects."""
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
        target = label_code(classes, centers) @ self.constants["fit"]
        off_target = (features.float() - target).square().mean(-1) / self.constants["scale"]
        background, objects = off_target[~on_object].mean(), off_target[on_object].mean()
        labels = functional.cross_entropy(class_logits, classes[..., 0].flatten())
        labels = labels + 0.5 * functional.cross_entropy(color_logits, classes[..., 1].flatten())
        present = presence_targets(self.scenes.objects[indices], self.scenes.signs[indices])
        labels = labels + 2 * functional.binary_cross_entropy_with_logits(presence, present)
        loss = self.settings.label_weight * labels + background + objects
        return loss, {"off target: background": background.item(), "objects": objects.item()}


def main() -> None:
    """Command line of this stage."""
    args = stage_arguments(__doc__, SettleSettings.num_steps).parse_args()
    settings = SettleSettings(num_steps=args.num_steps)
    settler = TowerSettler(settings, SceneArrays(args.work_dir, "train"), args.work_dir)
    validation = SceneArrays(args.work_dir, "validation")
    settler.advance(
        args.stop_step,
        report_every=100,
        report=lambda: f"settled tower step {settler.step}: patch accuracy {patch_accuracy(settler, validation)}",
    )


if __name__ == "__main__":
    main()
