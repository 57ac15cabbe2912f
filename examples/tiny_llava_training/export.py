"""Writes a trained model as an ordinary checkpoint folder: weights, configuration, tokenizer, image processor."""

import argparse
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from processing import build_generation_config, build_processor
from tiny_model import build_model


def export_model(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Saves model and processor in float32 safetensors."""
    model.generation_config = build_generation_config()
    model.config.text_config.use_cache = True
    model.float().save_pretrained(folder)
    processor = build_processor()
    processor.save_pretrained(folder)
    # The processor's file holds the image processor too; readers older than that look for it alone.
    processor.image_processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def load_trained(work_dir: Path, language_seed: int) -> LlavaForConditionalGeneration:
    """The model of the last language checkpoint in a working directory."""
    model = build_model(language_seed)
    state = torch.load(work_dir / f"language-seed{language_seed}.pt")
    model.load_state_dict(state["model"])
    return model


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--language-seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--random-weights", action="store_true", help="export an untrained model of the same format")
    args = parser.parse_args()
    if args.random_weights:
        model = build_model(args.language_seed)
    elif args.work_dir:
        model = load_trained(args.work_dir, args.language_seed)
    else:
        parser.error("give --work-dir, or --random-weights")
    export_model(model, args.output)
    size_bytes = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(f"{args.output}: {sum(p.numel() for p in model.parameters())} parameters, {size_bytes} bytes")


if __name__ == "__main__":
    main()
