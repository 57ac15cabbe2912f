"""Runs every stage of the training, each in a process of its own; a rerun continues where it stopped."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

BUNDLED_SEED = 2  # of the committed model
_HERE = Path(__file__).resolve().parent


def stages(work_dir: Path, language_seed: int, output: Path) -> list[tuple[str, list[str]]]:
    """Script and arguments of each stage, in order."""
    work = ["--work-dir", str(work_dir)]
    seed = ["--language-seed", str(language_seed)]
    return [
        ("scene_data", work),
        ("train_tower", work),
        ("settle_tower", work),
        ("features", work),
        ("train_language", [*work, *seed]),
        ("export", [*work, *seed, "--output", str(output)]),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, required=True, help="takes about 5 GB of scenes, features, checkpoints"
    )
    parser.add_argument("--language-seed", type=int, default=BUNDLED_SEED)
    parser.add_argument("--output", type=Path, default=_HERE.parent / "tiny-llava")
    args = parser.parse_args()
    # Threads that sleep while they wait lose less to a busy neighbour than threads that spin.
    environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE")
    timings: dict[str, float] = {}
    for name, arguments in stages(args.work_dir, args.language_seed, args.output):
        started = time.monotonic()
        subprocess.run([sys.executable, str(_HERE / f"{name}.py"), *arguments], check=True, env=environment)
        timings[name] = round(time.monotonic() - started, 1)
        print(f"{name}: {timings[name]} s", flush=True)
    print(json.dumps({"seconds_by_stage": timings, "seconds": round(sum(timings.values()), 1)}))


if __name__ == "__main__":
    main()
