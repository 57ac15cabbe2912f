"""Runs the frozen tower once over all scenes, so that the language stage never does."""

import argparse
from pathlib import Path

import numpy as np
import torch

import tiny_model
from scene_data import SceneArrays
from scenes import NUM_TOKENS
from tiny_model import VISION_WIDTH

NUM_FEATURE_SCENES = 32_000
_CHUNK = 200


def feature_array(work_dir: Path, split: str, *, mode: str = "r") -> np.ndarray:
    """Patch features float16 (N, 256, 128) of the first N scenes of a split, memory-mapped."""
    return np.load(work_dir / f"features-{split}.npy", mmap_mode=mode)


@torch.no_grad()
def extract_features(work_dir: Path, split: str, max_scenes: int) -> None:
    """Writes the features of a split; an interrupted run continues where it stopped."""
    scenes = SceneArrays(work_dir, split)
    num_scenes = min(max_scenes, len(scenes))
    path, progress = work_dir / f"features-{split}.npy", work_dir / f"features-{split}.progress"
    done = int(progress.read_text()) if progress.exists() else 0
    if done == 0:
        np.lib.format.open_memmap(path, "w+", np.float16, (num_scenes, NUM_TOKENS, VISION_WIDTH)).flush()
    features = feature_array(work_dir, split, mode="r+")
    tower = tiny_model.build_model(0).model.vision_tower.eval()
    tower.load_state_dict(torch.load(work_dir / "tower-settled.pt")["tower"])
    tiny_model.use_training_attention(tower)
    for start in range(done, num_scenes, _CHUNK):
        stop = min(start + _CHUNK, num_scenes)
        for first in range(start, stop, 50):
            last = min(first + 50, stop)
            with torch.autocast("cpu", torch.bfloat16):
                patches, _ = tiny_model.patch_features(tower, tiny_model.normalized_pixels(scenes.images[first:last]))
            features[first:last] = patches.half().numpy()
        features.flush()
        progress.write_text(str(stop))


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--max-scenes", type=int, default=NUM_FEATURE_SCENES)
    args = parser.parse_args()
    tiny_model.use_fixed_threads()
    for split in ("validation", "train"):
        extract_features(args.work_dir, split, args.max_scenes)
        print(f"features of {split}: {feature_array(args.work_dir, split).shape}", flush=True)


if __name__ == "__main__":
    main()
