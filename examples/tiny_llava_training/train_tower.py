"""Trains the vision tower alone: every patch names its object, the class token names what the scene holds.

The heads are thrown away afterwards. What they leave behind are patch features that carry class, colour and place of
the patch's own object and nothing of the others, which is what makes dropping tokens cost something.

For speed all but the last steps leave most of the background patches out.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import tiny_model
from scene_data import SceneArrays
from scenes import (
    COLORS,
    DIGIT_KIND,
    FIRST_CLUTTER,
    GRID,
    IMAGE_SIZE_PX,
    KINDS,
    MARK,
    NUMBERS,
    PATCH_CLASSES,
    PATCH_COLORS,
    PATCH_SIZE_PX,
    PRINTED,
    WRITTEN,
)
from stage_trainer import StageTrainer, stage_arguments

NUM_PAIRS = len(KINDS) * len(COLORS)
NUM_PRESENCES = NUM_PAIRS + 2 * len(NUMBERS) + len(COLORS)


@dataclass(frozen=True)
class TowerSettings:
    """Settings of the tower stage."""

    num_steps: int = 5000
    schedule_steps: int = 5500
    focused_share: float = 0.88
    focused_tokens: int = 112
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 1
    digit_weight: float = 2.0
    background_weight: float = 0.25
    clutter_weight: float = 0.5
    checkpoint_every: int = 200


class DenseHeads(nn.Module):
    """Linear read-outs of the patches' features and of the class token."""

    def __init__(self) -> None:
        super().__init__()
        width = tiny_model.VISION_WIDTH
        self.class_head = nn.Linear(width, len(PATCH_CLASSES))
        self.color_head = nn.Linear(width, len(PATCH_COLORS))
        self.place_head = nn.Linear(width, 4)
        self.presence_head = nn.Linear(width, NUM_PRESENCES)


def presence_targets(objects: np.ndarray, signs: np.ndarray) -> torch.Tensor:
    """What a scene holds: (kind, colour) pairs, written digits, printed digits, colours of marks.

    objects int (B, 9, 7) and signs int (B, 2, 6) as in `SceneArrays`; returns float (B, 56).
    """
    targets = torch.zeros(len(objects), NUM_PRESENCES)
    written, printed, mark = NUM_PAIRS, NUM_PAIRS + len(NUMBERS), NUM_PAIRS + 2 * len(NUMBERS)
    for row, (of_scene, plates) in enumerate(zip(objects, signs, strict=True)):
        for kind, color, digit, _, _, _, marked in of_scene[of_scene[:, 0] >= 0].tolist():
            targets[row, kind * len(COLORS) + color] = 1
            if kind == DIGIT_KIND:
                targets[row, written + digit] = 1
            if marked >= 0:
                targets[row, mark + marked] = 1
        for digit in plates[plates[:, 0] >= 0, 3:].ravel().tolist():
            if digit >= 0:
                targets[row, printed + digit] = 1
    return targets


def place_targets(centers_px: torch.Tensor) -> torch.Tensor:
    """The object's centre from the patch (in patches) and in the image (-1 to 1): (B, 256, 2) to (B, 256, 4)."""
    axis = (torch.arange(GRID) + 0.5) * PATCH_SIZE_PX
    here = torch.stack([axis.repeat(GRID), axis.repeat_interleave(GRID)], dim=-1)
    half = IMAGE_SIZE_PX / 2
    return torch.cat([(centers_px - here) / PATCH_SIZE_PX, centers_px / half - 1], dim=-1)


class TowerTrainer(StageTrainer):
    """The tower and its heads."""

    name = "tower"

    def __init__(self, settings: TowerSettings, scenes: SceneArrays, work_dir: Path) -> None:
        super().__init__(settings, work_dir / "tower.pt", len(scenes))
        self.scenes = scenes
        self.tower = tiny_model.build_model(settings.seed).model.vision_tower
        tiny_model.use_training_attention(self.tower)
        self.heads = DenseHeads()
        self.class_weights = torch.ones(len(PATCH_CLASSES))
        self.class_weights[0] = settings.background_weight
        self.class_weights[WRITTEN:FIRST_CLUTTER] = settings.digit_weight
        self.class_weights[FIRST_CLUTTER:] = settings.clutter_weight
        self.begin({"tower": self.tower, "heads": self.heads})

    def learning_rate(self) -> float:
        """Cosine of the schedule, which ends after the stage does."""
        settings = self.settings
        return tiny_model.learning_rate_at(self.step, peak=settings.learning_rate, num_steps=settings.schedule_steps)

    def loss(self, indices: np.ndarray) -> tuple[torch.Tensor, dict[str, float]]:
        """Of class, colour, place and presence."""
        generator = tiny_model.step_generator(self.settings.seed, self.step)
        pixels = tiny_model.normalized_pixels(self.scenes.images[indices])
        pixels = pixels * (1 + 0.1 * torch.randn(len(pixels), 1, 1, 1, generator=generator))
        pixels = pixels + 0.1 * torch.randn(len(pixels), 3, 1, 1, generator=generator)
        classes = torch.from_numpy(self.scenes.classes[indices]).long()
        places = place_targets(torch.from_numpy(self.scenes.centers[indices]).float())
        kept = None
        if self.step < self.settings.focused_share * self.settings.schedule_steps:
            preference = (classes[..., 0] > 0) + torch.rand(classes.shape[:2], generator=generator)
            kept = preference.topk(self.settings.focused_tokens, dim=1).indices
            classes = classes.gather(1, kept[..., None].expand(-1, -1, 2))
            places = places.gather(1, kept[..., None].expand(-1, -1, 4))
        with torch.autocast("cpu", torch.bfloat16):
            features, hidden = tiny_model.patch_features(self.tower, pixels, kept)
            last = self.tower.encoder.layers[-1](hidden, attention_mask=None)
            presence = self.heads.presence_head(self.tower.post_layernorm(last[:, 0]))
            class_logits, color_logits = self.heads.class_head(features), self.heads.color_head(features)
            place = self.heads.place_head(features)
        present = presence_targets(self.scenes.objects[indices], self.scenes.signs[indices])
        on_object = classes[..., 0] > 0
        color_weights = torch.ones(len(PATCH_COLORS))
        color_weights[0] = self.settings.background_weight
        class_logits, color_logits = class_logits.flatten(0, 1).float(), color_logits.flatten(0, 1).float()
        of_class = functional.cross_entropy(class_logits, classes[..., 0].flatten(), self.class_weights)
        of_color = functional.cross_entropy(color_logits, classes[..., 1].flatten(), color_weights)
        of_place = functional.smooth_l1_loss(place.float()[on_object], places[on_object])
        of_presence = functional.binary_cross_entropy_with_logits(presence.float(), present)
        loss = of_class + 0.5 * of_color + 0.3 * of_place + 2 * of_presence
        return loss, {"loss": loss.item()}


@torch.no_grad()
def patch_accuracy(trainer: TowerTrainer, scenes: SceneArrays) -> dict[str, float]:
    """Share of held-out patches whose class or colour is read out rightly, by what lies on the patch."""
    groups = {
        "background": (0, 1),
        "shape": (1, WRITTEN),
        "written": (WRITTEN, PRINTED),
        "printed": (PRINTED, MARK),
        "mark": (MARK, FIRST_CLUTTER),
        "clutter": (FIRST_CLUTTER, len(PATCH_CLASSES)),
    }
    right: dict[str, list[torch.Tensor]] = {name: [] for name in (*groups, "color")}
    for start in range(0, len(scenes), 100):
        features, _ = tiny_model.patch_features(
            trainer.tower, tiny_model.normalized_pixels(scenes.images[start : start + 100])
        )
        classes = torch.tensor(scenes.classes[start : start + 100]).long()
        named, colored = trainer.heads.class_head(features).argmax(-1), trainer.heads.color_head(features).argmax(-1)
        truth = classes[..., 0]
        for name, (first, last) in groups.items():
            right[name].append((named == truth)[(truth >= first) & (truth < last)])
        right["color"].append((colored == classes[..., 1])[truth > 0])
    return {name: round(torch.cat(parts).float().mean().item(), 4) for name, parts in right.items()}


def main() -> None:
    """Command line of this stage."""
    args = stage_arguments(__doc__, TowerSettings.num_steps).parse_args()
    trainer = TowerTrainer(TowerSettings(num_steps=args.num_steps), SceneArrays(args.work_dir, "train"), args.work_dir)
    validation = SceneArrays(args.work_dir, "validation")
    trainer.advance(
        args.stop_step,
        report_every=500,
        report=lambda: f"tower step {trainer.step} patch accuracy {patch_accuracy(trainer, validation)}",
    )


if __name__ == "__main__":
    main()
