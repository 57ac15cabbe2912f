"""Fine-tuning on pruned features, interrupted and resumed, gives the same losses and weights to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fine_tune import FineTuning, Settings
from safetensors.torch import load_file

from pipeline.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "fine_tuning" / "fine_tune.py"


@pytest.fixture(scope="module")
def pruned(prune: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty-two images, in four shards."""
    output = tmp_path_factory.mktemp("fine_tuning") / "pruned"
    prune(output, limit=32, shard_size=8, max_tokens="16")
    return str(output)


@pytest.fixture
def settings(pruned: str, tiny_llava: str, tmp_path: Path) -> Settings:
    return Settings(pruned, tiny_llava, tmp_path / "whole", tokens="8", steps=7, batch_size=4, save_every=2)


def test_interrupted_and_resumed_the_loss_is_the_same_to_the_bit(settings: Settings, tmp_path: Path) -> None:
    whole = FineTuning(settings)
    whole.run()
    assert len(whole.losses) == 7
    assert len(set(whole.losses)) == 7
    parts = replace(settings, work_dir=tmp_path / "parts")
    for stop, workers in ((1, 0), (3, 2), (5, 0)):  # behind the first step nothing was saved
        FineTuning(replace(parts, stop_after=stop, num_workers=workers)).run()
    last = FineTuning(parts)
    assert len(last.losses) == 4
    last.run()
    assert last.losses == whole.losses
    tensors = [load_file(one.settings.work_dir / "state.safetensors") for one in (whole, last)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_what_is_learnt_is_exported_and_answers_from_the_same_artifact(
    settings: Settings, work_here: None, tmp_path: Path
) -> None:
    from pipeline.answer.job import answer_corpus
    from pipeline.answer.settings import AnswerSettings

    tuning = FineTuning(replace(settings, steps=2))
    before = load_file(Path(settings.model) / "model.safetensors")
    tuning.run()
    tuning.export(tmp_path / "model")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"language_model"}
    answers = answer_corpus(
        AnswerSettings(
            pruned=settings.pruned, model=str(tmp_path / "model"), output=str(tmp_path / "answers"), tokens="8"
        ),
        print,
    )
    assert answers.prompts
    assert not answers.refused


def test_a_run_of_other_settings_is_not_gone_on_with(settings: Settings, model_dir: Path, tmp_path: Path) -> None:
    FineTuning(replace(settings, steps=2)).run()
    with pytest.raises(UserError, match="was begun with other settings"):
        FineTuning(replace(settings, learning_rate=1.0))
    with pytest.raises(UserError, match=r"in another order \(tokens: '8' -> '4'\)"):
        FineTuning(replace(settings, tokens="4"))


@pytest.mark.slow
def test_a_hundred_steps_of_a_run_that_is_killed_thrice(pruned: str, tiny_llava: str, tmp_path: Path) -> None:
    def started(work_dir: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), "--pruned", pruned, "--model", tiny_llava, "--tokens", "8"]
        return subprocess.Popen(
            [*command, "--work-dir", str(work_dir), *more], stdout=subprocess.PIPE, text=True, env={**os.environ}
        )

    whole = started(tmp_path / "whole")
    assert whole.wait(600) == 0
    for step in (13, 37, 68):
        run = started(tmp_path / "parts", "--num-workers", "2")
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith(f"step {step}:"):
                break
        run.send_signal(signal.SIGKILL)
        assert run.wait(60) == -signal.SIGKILL
        time.sleep(0.5)
    assert started(tmp_path / "parts").wait(600) == 0
    losses = [json.loads((tmp_path / name / "losses.json").read_text()) for name in ("whole", "parts")]
    assert len(losses[0]) == 100
    assert losses[0] == losses[1]
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
