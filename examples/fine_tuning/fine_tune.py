"""Fine-tunes a language model on pruned features: no image, no vision tower, and prompts as short as their budget.

    zoo-prune prune --corpus "examples/scenes/scenes-{000000..000002}.tar" --model examples/tiny-llava \
        --output out/scenes --max-tokens 64
    python examples/fine_tuning/fine_tune.py --pruned out/scenes --tokens 16 --work-dir out/fine-tuned
    zoo-prune answer --pruned out/scenes --model out/fine-tuned/model --tokens 16 --output out/tuned-answers

The same command goes on where a run was interrupted, also with another number of workers, and ends with the same bits:
losses, weights and optimizer.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from jobs.console import quiet_libraries
from jobs.options import EXIT_BAD_INPUT
from pipeline.answer.checks import check_model
from pipeline.artifact.artifact import Artifact
from pipeline.datasets.collate import Collate, first_reference, images_of
from pipeline.datasets.torch_dataset import PrunedDataset, PrunedLoader
from pipeline.errors import UserError
from pipeline.families.checkpoint import answering_identity, open_checkpoint

LANES = 4  # 0, 1, 2 or 4 workers give the same batches


@dataclass(frozen=True)
class Settings:
    """Of a run; all but the last three decide the losses."""

    pruned: str
    model: str
    work_dir: Path
    tokens: str = "16"
    steps: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-4
    seed: int = 0
    threads: int = 1
    num_workers: int = 0
    save_every: int = 10
    stop_after: int | None = None


class FineTuning:
    """The language model of a checkpoint, its optimizer, and the loader, as they stand after some steps."""

    def __init__(self, settings: Settings) -> None:
        """Begin, or go on where `work_dir` says.

        Raises:
            UserError: the artifact or the model can't be used, or the work folder is of other settings.
        """
        torch.set_num_threads(settings.threads)  # sums depend on it
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.checkpoint, family = open_checkpoint(settings.model)
        artifact = Artifact(settings.pruned)
        job = artifact.require_job("prune", "--pruned")
        check_model(settings.model, answering_identity(self.checkpoint, family), artifact, job)
        self.answerer = family.answerer(self.checkpoint, torch.device("cpu"), torch.float32)
        self.model = self.answerer.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        dataset = PrunedDataset(
            settings.pruned,
            tokens=settings.tokens,
            dtype=torch.float32,
            batch_size=settings.batch_size,
            collate=Collate(self.answerer, answer=first_reference),
            shuffle=True,
            seed=settings.seed,
            lanes=LANES,
        )
        self.loader = PrunedLoader(dataset, settings.num_workers)
        self.losses: list[float] = []
        self._state = settings.work_dir / "state.safetensors"
        if self._state.exists():
            self._resume()

    @property
    def _decided(self) -> dict[str, Any]:
        """What a run must have in common with the one it goes on with, beside what the loader asks for."""
        settings = self.settings
        model = answering_identity(self.checkpoint, open_checkpoint(settings.model)[1])["language"]
        return {"learning_rate": settings.learning_rate, "threads": settings.threads, "model": model}

    def run(self) -> None:
        """Take the steps that are left; one is saved or is taken again."""
        while len(self.losses) < self.settings.steps:
            for batch in self.loader:
                self.losses.append(self._step(batch))
                done = len(self.losses)
                print(f"step {done}: loss {self.losses[-1]:.4f}", flush=True)
                if done % self.settings.save_every == 0 or done == self.settings.steps:
                    self.save()
                if done in (self.settings.stop_after, self.settings.steps):
                    return

    def _step(self, batch: dict[str, Any]) -> float:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        inputs = self.answerer.image_inputs(images_of(batch), ids, mask)
        loss = self.model(input_ids=ids, attention_mask=mask, labels=batch["labels"], **inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def save(self) -> None:
        """Write weights, optimizer, losses and where the loader stands, as one file, whole or not at all."""
        tensors = {f"model.{name}": tensor for name, tensor in self._weights().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        state = {"losses": self.losses, "loader": self.loader.state_dict(), "decided": self._decided}
        self.settings.work_dir.mkdir(parents=True, exist_ok=True)
        new = self._state.with_suffix(".new")
        save_file(tensors, new, metadata={"state": json.dumps(state)})
        os.replace(new, self._state)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def _resume(self) -> None:
        with safe_open(self._state, "pt") as file:
            state = json.loads(file.metadata()["state"])
        tensors = load_file(self._state)
        if state["decided"] != self._decided:
            raise UserError(
                f"--work-dir {self.settings.work_dir} was begun with other settings ({state['decided']}; now "
                f"{self._decided}); repeat them, or name another folder"
            )
        self.loader.load_state_dict(state["loader"])
        self.losses = state["losses"]
        for name, parameter in self._weights().items():
            parameter.copy_(tensors[f"model.{name}"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                moments.setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def export(self, folder: Path) -> None:
        """Write the checkpoint with the weights as they are now.

        Names and shapes of all tensors, and the projector, stay as they were, so it answers from the same artifact.
        """
        whole = AutoModelForImageTextToText.from_pretrained(self.checkpoint.path)
        unknown = whole.load_state_dict(self._weights(), strict=False).unexpected_keys
        assert not unknown, "the language side is a part of the model"
        whole.save_pretrained(folder)
        for file in self.checkpoint.path.iterdir():  # config, tokenizer and templates as they were
            if file.is_file() and not file.name.startswith("model"):
                shutil.copy(file, folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pruned", required=True, help="output of a prune job, a folder or s3://BUCKET/KEY")
    parser.add_argument("--model", default=str(Path(__file__).resolve().parents[1] / "tiny-llava"))
    parser.add_argument("--work-dir", type=Path, required=True, help="takes the state, the losses and the model")
    parser.add_argument("--tokens", default=Settings.tokens, help="of each image, as of zoo-prune answer")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--threads", type=int, default=Settings.threads, help="of PyTorch; another number, other bits")
    parser.add_argument("--num-workers", type=int, default=Settings.num_workers, help="that read: 0, 1, 2 or 4")
    parser.add_argument("--save-every", type=int, default=Settings.save_every, help="steps")
    parser.add_argument("--stop-after", type=int, help="step, as if the run were interrupted there")
    given = parser.parse_args()
    for name in ("steps", "batch_size", "threads", "save_every"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(given, name)}: expected 1 or more")
    settings = Settings(**vars(given))
    quiet_libraries()
    try:
        tuning = FineTuning(settings)
        tuning.run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    if len(tuning.losses) > settings.steps:
        print(f"{settings.work_dir} is {len(tuning.losses)} steps far already, --steps {settings.steps} asks for fewer")
    if len(tuning.losses) == settings.steps:
        (settings.work_dir / "losses.json").write_text(json.dumps(tuning.losses) + "\n")
        tuning.export(settings.work_dir / "model")
        print(f"loss {tuning.losses[0]:.4f} -> {tuning.losses[-1]:.4f}; the model is in {settings.work_dir / 'model'}")


if __name__ == "__main__":
    main()
