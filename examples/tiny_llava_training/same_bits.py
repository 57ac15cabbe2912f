"""Proves that training gives the same bits twice: 200 steps of every stage, the second time interrupted half-way.

python same_bits.py --work-dir /tmp/same_bits --output same_bits.json
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import tiny_model

_HERE = Path(__file__).resolve().parent
CHECKPOINTS = {"train_tower": "tower.pt", "settle_tower": "tower-settled.pt", "train_language": "language-seed1.pt"}


def digest(path: Path) -> str:
    """SHA-256 over every tensor of a checkpoint, in the order of their names."""
    sha = hashlib.sha256()

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                add(f"{name}.{key}", value[key])
        elif isinstance(value, list):
            for number, one in enumerate(value):
                add(f"{name}.{number}", one)
        elif isinstance(value, torch.Tensor):
            sha.update(name.encode())
            sha.update(value.contiguous().numpy().tobytes())

    add("", torch.load(path))
    return sha.hexdigest()


def _run(stage: str, work_dir: Path, *arguments: str) -> None:
    environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE")
    command = [sys.executable, str(_HERE / f"{stage}.py"), "--work-dir", str(work_dir), *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    """Command line; fails unless all bits are the same."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--num-steps", type=int, default=200)
    parser.add_argument("--num-scenes", type=int, default=6400)
    parser.add_argument("--output", type=Path, help="write the digests here as JSON")
    args = parser.parse_args()
    digests: dict[str, list[str]] = {stage: [] for stage in CHECKPOINTS}
    for name, stops in (("once", [args.num_steps]), ("again", [args.num_steps // 2, args.num_steps])):
        work_dir = args.work_dir / name
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir(parents=True)
        _run("scene_data", work_dir, "--num-scenes", str(args.num_scenes))
        for stage, checkpoint in CHECKPOINTS.items():
            if stage == "train_language":
                _run("features", work_dir)
            for stop in stops:
                _run(stage, work_dir, "--stop-step", str(stop), "--num-steps", str(args.num_steps))
            digests[stage].append(digest(work_dir / checkpoint))
            print(f"{stage}, {name}: {digests[stage][-1]}", flush=True)
    same = all(first == second for first, second in digests.values())
    result = {
        "same_bits": same,
        "num_steps": args.num_steps,
        "num_scenes": args.num_scenes,
        "sha256_of_checkpoint_tensors": {stage: pair[0] for stage, pair in digests.items()},
        "torch": torch.__version__,
        "num_threads": tiny_model.NUM_THREADS,
        "machine": platform.machine(),
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    if not same:
        raise SystemExit(f"the two runs differ: {digests}")


if __name__ == "__main__":
    main()
