"""Which bytes of a checkpoint two runs must share: those the job reads; and the hub's commit is looked up once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from pipeline.cluster.environment import environment
from pipeline.errors import UserError
from pipeline.families.base import Checkpoint, Family
from pipeline.families.checkpoint import answering_identity, identity, open_checkpoint, read_header
from tests.families.models import TINY

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture
def copy_of(case: Callable[[str], Any], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint to alter."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(case(name).folder, tmp_path / name))

    return make


def flip(file: Path, tensor: str) -> None:
    """Change the last byte of a tensor; twice is once too many."""
    header, begin = read_header(file)
    with open(file, "r+b") as stream:
        stream.seek(begin + header[tensor]["data_offsets"][1] - 1)
        (byte,) = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))


def of_both(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    return identities(open_checkpoint(str(folder)))


def identities(opened: tuple[Checkpoint, Family]) -> tuple[dict[str, str], dict[str, str]]:
    return identity(*opened), answering_identity(*opened)


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_parameters()}


def old_names(names: list[str]) -> dict[str, str]:
    """The names under which Transformers holds the tensors in memory, where it also loads those."""
    moved = {}
    for name in names:
        new = name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        )
        if name.startswith(("vision_tower", "multi_modal_projector", "image_newline")):
            new = f"model.{name}"
        elif name.startswith(("model.layers", "model.embed_tokens", "model.norm")):
            new = name.replace("model.", "model.language_model.", 1)
        moved[name] = new
    return moved


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("renamed", [False, True])
def test_every_tensor_a_job_reads_is_in_its_identity_and_no_other(case, copy_of, name, renamed):
    folder = copy_of(name)
    file = folder / WEIGHTS
    if renamed:
        tensors = load_file(file)
        names = old_names(list(tensors))
        save_file({names[old]: tensor for old, tensor in tensors.items()}, file, metadata={"format": "pt"})
    opened = checkpoint, family = open_checkpoint(str(folder))
    before = identities(opened)
    sides = (
        lambda: family.encoder(checkpoint, CPU, torch.float32)._model,
        lambda: family.answerer(checkpoint, CPU, torch.float32).model,
    )
    # Zero what the job's identity does not name: a job that read any of it would have another model.
    header, _ = read_header(file)
    named: list[set[str]] = [set(), set()]
    for tensor in header:
        flip(file, tensor)
        for side, (old, new) in enumerate(zip(before, identities(opened), strict=True)):
            if old != new:
                named[side].add(tensor)
        flip(file, tensor)
    assert of_both(folder) == before
    tensors = load_file(file)
    for side, load in enumerate(sides):
        whole = parameters(load())
        others = {key: value if key in named[side] else 0 * value for key, value in tensors.items()}
        save_file(others, file, metadata={"format": "pt"})
        without = parameters(load())
        assert all(torch.equal(whole[key], without[key]) for key in whole)
        save_file(tensors, file, metadata={"format": "pt"})
        assert 0 < len(named[side]) < len(tensors)
    towers = {key for key in tensors if any(part in key for part in ("vision_tower", "vision_model", "visual.blocks"))}
    assert towers <= named[0]
    assert not towers & named[1]
    language = {key for key in tensors if "lm_head" in key or "embed_tokens" in key or "layers.0.mlp.down_proj" in key}
    assert language <= named[1]
    assert not language & named[0]


def test_shards_are_read_in_whatever_order(case, tmp_path):
    stock = case("llava").stock
    digests = []
    for size in ("60KB", "10GB"):
        stock.save_pretrained(tmp_path / size, max_shard_size=size)
        case("llava").tiny.processor().save_pretrained(tmp_path / size)
        digests.append(identity(*open_checkpoint(str(tmp_path / size))))
    assert digests[0]["vision"] == digests[1]["vision"]
    assert digests[0]["projector"] == digests[1]["projector"]


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("tokenizer.json", "prompting"),
        ("tokenizer_config.json", "prompting"),
        ("chat_template.jinja", "prompting"),
        ("generation_config.json", "generation"),
    ],
)
def test_what_poses_and_ends_answers_is_in_their_identity(copy_of, file, part):
    folder = copy_of("llava")
    before = of_both(folder)
    text = (folder / file).read_text()
    if file.endswith(".json"):
        text = json.dumps({**json.loads(text), "marked": 1})
    else:
        text += "{# marked #}"
    (folder / file).write_text(text)
    after = of_both(folder)
    assert after[0] == before[0]
    assert {key for key in after[1] if after[1][key] != before[1][key]} == {part}


def test_an_adapter_is_not_ignored(copy_of):
    folder = copy_of("llava")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json lies beside its weights"):
        open_checkpoint(str(folder))


@pytest.fixture
def hub(case: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A local cache in the hub's layout with two commits of `org/name`; the call says which one `main` is."""
    root = tmp_path / "hub" / "models--org--name"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(case("llava").folder, root / "snapshots" / commit)
    flip(root / "snapshots" / ("b" * 40) / WEIGHTS, "vision_tower.pre_layrnorm.bias")
    (root / "refs").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert huggingface_hub.is_offline_mode()

    def point(letter: str) -> None:
        (root / "refs" / "main").write_text(letter * 40)

    return point


def test_a_hub_id_is_resolved_once(hub):
    hub("a")
    checkpoint, family = open_checkpoint("org/name")
    assert checkpoint.revision == "a" * 40
    assert checkpoint.pinned == f"org/name@{'a' * 40}"
    assert environment(checkpoint)["model"] == checkpoint.pinned
    hub("b")  # what a worker would find that asks for `main` later
    assert open_checkpoint("org/name")[0].revision == "b" * 40
    worker, _ = open_checkpoint(checkpoint.pinned)
    assert worker.path == checkpoint.path
    assert worker.pinned == checkpoint.pinned
    assert identity(worker, family) == identity(checkpoint, family)
    assert identity(*open_checkpoint("org/name")) != identity(checkpoint, family)


def test_a_revision_can_be_asked_for(hub):
    hub("a")
    assert open_checkpoint("org/name@main")[0].revision == "a" * 40
    assert open_checkpoint(f"org/name@{'b' * 40}")[0].revision == "b" * 40
    with pytest.raises(UserError, match=r"--model org/name@v2: no such folder, and the hub does not give it"):
        open_checkpoint("org/name@v2")


def test_a_folder_is_pinned_as_an_absolute_path(case, monkeypatch):
    folder = case("llava").folder
    monkeypatch.chdir(folder.parent)
    checkpoint, _ = open_checkpoint(folder.name)
    assert checkpoint.revision is None
    assert checkpoint.pinned == str(folder.resolve())
