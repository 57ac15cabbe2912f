"""What the three training stages share: arguments, optimizers, the loop over steps, checkpoints to continue from."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tiny_model


def stage_arguments(description: str | None, num_steps: int) -> argparse.ArgumentParser:
    """The arguments that every stage takes; num_steps is the default length of this one."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--num-steps", type=int, default=num_steps, help="steps of the whole stage")
    parser.add_argument("--stop-step", type=int, help="stop after this step; the same command without it goes on")
    return parser


class StageTrainer:
    """Modules and their optimizers, advanced step by step; interrupted and continued, it ends with the same bits.

    A stage sets `name`, builds its modules, then calls `begin`, and says what a step's loss is.
    """

    name: str

    def __init__(self, settings: Any, path: Path, num_scenes: int) -> None:
        """settings: with num_steps, batch_size, learning_rate, seed, checkpoint_every. path: of the checkpoint."""
        tiny_model.use_fixed_threads()
        self.settings, self.path, self.num_scenes = settings, path, num_scenes
        self.step = 0

    def begin(self, modules: dict[str, nn.Module], constants: dict[str, torch.Tensor] | None = None) -> None:
        """Train the modules' parameters that want gradients, from the checkpoint where there is one.

        constants: computed once before the first step, kept in the checkpoint.
        """
        self.modules, self.constants = modules, constants or {}
        named = [
            (name, parameter)
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters(prefix=prefix)
            if parameter.requires_grad
        ]
        self.parameters = [parameter for _, parameter in named]
        self.optimizers = tiny_model.build_optimizers(named, learning_rate=self.settings.learning_rate)
        if self.path.exists():
            state = torch.load(self.path)
            self.step, self.constants = state["step"], state["constants"]
            for key, module in modules.items():
                module.load_state_dict(state[key])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def save(self) -> None:
        """Writes the checkpoint."""
        state: dict[str, Any] = {name: module.state_dict() for name, module in self.modules.items()}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state |= {"step": self.step, "constants": self.constants, "optimizers": optimizers}
        tiny_model.save_atomically(state, self.path)

    def loss(self, indices: np.ndarray) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of one batch of scenes, and the figures to log."""
        raise NotImplementedError

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        raise NotImplementedError

    def run(self, *, stop_step: int | None = None, log_every: int = 50) -> None:
        """Trains up to `stop_step` (default: the end), writing checkpoints on the way."""
        settings = self.settings
        stop_step = settings.num_steps if stop_step is None else stop_step
        started, first = time.monotonic(), self.step
        logged: list[dict[str, float]] = []
        for indices in tiny_model.batches(
            self.num_scenes, settings.batch_size, seed=settings.seed, start_step=self.step, num_steps=stop_step
        ):
            rate = self.learning_rate()
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
            loss, figures = self.loss(np.sort(indices))
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            logged.append(figures)
            if self.step % log_every == 0:
                speed = (self.step - first) * settings.batch_size / (time.monotonic() - started)
                means = {name: sum(one[name] for one in logged) / len(logged) for name in figures}
                shown = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                print(f"{self.name} step {self.step} {shown} {speed:.0f} images/s", flush=True)
                logged = []
            if self.step % settings.checkpoint_every == 0 or self.step == settings.num_steps:
                self.save()

    def advance(self, stop_step: int | None, *, report_every: int, report: Callable[[], str]) -> None:
        """Runs up to `stop_step` (default: the end), printing `report()` every so many steps and at the end."""
        stop_step = self.settings.num_steps if stop_step is None else min(stop_step, self.settings.num_steps)
        while self.step < stop_step:
            self.run(stop_step=min((self.step // report_every + 1) * report_every, stop_step))
            print(report(), flush=True)
        self.save()
