"""Which model: from `--model` to a folder, its family, and an identity that two runs can compare."""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download
from transformers import AutoConfig

from pipeline.errors import UserError
from pipeline.families import FAMILIES, family_of
from pipeline.families.base import Checkpoint, Family
from pipeline.paths import refuse_url

_NEEDED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_SHARD_NAME = re.compile(r"model-\d+-of-\d+\.safetensors")
MAX_HEADER_BYTES = 100 << 20


def open_checkpoint(name: str) -> tuple[Checkpoint, Family]:
    """Find the checkpoint and the family that handles it.

    Args:
        name: a folder, or a hub id (`org/name`), downloaded or taken from the local cache.

    Raises:
        UserError: no such model, no usable config, an architecture without an adapter, no safetensors weights, or
            shards that are not those of its index.
    """
    refuse_url("--model", name, "name its folder, or its hub id (org/name), which is fetched for you")
    path = Path(name).expanduser()
    if not path.is_dir():
        path = _download(name)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"--model {name}: config.json can't be used ({first})") from error
    family = family_of(config.model_type)
    if family is None:
        raise UserError(
            f"--model {name}: model type {config.model_type!r} is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}"
        )
    reason = family.refusal(config)
    if reason is not None:
        raise UserError(f"--model {name}: {reason}")
    weight_files(path, name)
    return Checkpoint(path.resolve(), name, config), family


def weight_files(path: Path, name: str) -> list[Path]:
    """The safetensors files that make up a checkpoint: those of its index, else its only one.

    Args:
        path: its folder.
        name: as the user gave it.

    Raises:
        UserError: none, some missing, or shards that the index does not know.
    """
    found = {file.name for file in path.glob("*.safetensors")}
    index = path / "model.safetensors.index.json"
    if not index.exists():
        if not found:
            raise UserError(
                f"--model {name}: no .safetensors file in {path}; pickled weights are not read, convert them first"
            )
        if "model.safetensors" in found:
            return [path / "model.safetensors"]
        raise UserError(
            f"--model {name}: {min(found)} is there but neither model.safetensors nor {index.name}; fetch the "
            "checkpoint again"
        )
    try:
        expected = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"--model {name}: {index.name} can't be used ({error}); fetch it again") from error
    if missing := sorted(expected - found):
        raise UserError(
            f"--model {name}: {len(missing)} of {len(expected)} safetensors shards are missing, e.g. {missing[0]}; "
            "fetch them again"
        )
    if extra := sorted(file for file in found - expected if _SHARD_NAME.fullmatch(file)):
        raise UserError(
            f"--model {name}: {extra[0]} is no shard of {index.name}; shards of two checkpoints lie in one folder, "
            "remove those that don't belong"
        )
    return [path / file for file in sorted(expected)]


def _download(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).parent.is_dir():
        raise UserError(f"--model {name}: no such folder, and not a hub id of the form org/name")
    try:
        return Path(snapshot_download(name, allow_patterns=_NEEDED_FILES))
    except Exception as error:  # the hub client raises many unrelated types; all of them mean: not to be had
        first = str(error).strip().splitlines()[0]
        raise UserError(f"--model {name}: no such folder, and the hub does not give it ({first})") from error


def identity(checkpoint: Checkpoint, family: Family) -> dict[str, str]:
    """What must be the same for two runs to use the same model: family, config, tensor headers, projector's bytes.

    Returns:
        `family` and lower-case hex sha256 values: `config` (config.json as canonical JSON), `image_processor`,
        `weights` (every safetensors header: names, dtypes, shapes, offsets), `projector` (names and raw bytes).
    """
    headers = hashlib.sha256()
    projector = hashlib.sha256()
    found = 0
    for file in weight_files(checkpoint.path, checkpoint.name):
        header, data_begin = read_header(file)
        headers.update(file.name.encode() + json.dumps(header, sort_keys=True).encode())
        for tensor in sorted(name for name in header if re.search(family.projector_weights, name)):
            begin, end = header[tensor]["data_offsets"]
            projector.update(tensor.encode() + json.dumps(header[tensor]["shape"]).encode())
            projector.update(
                np.memmap(file, np.uint8, "r", data_begin + begin, (end - begin,)).data if end > begin else b""
            )
            found += 1
    if not found:
        raise UserError(
            f"--model {checkpoint.name}: no projector weights (/{family.projector_weights}/) in its safetensors files; "
            f"is it a complete {family.name} checkpoint?"
        )
    processors = [checkpoint.path / name for name in _IMAGE_PROCESSOR_FILES]
    return {
        "family": family.name,
        "config": _digest_json(checkpoint.path / "config.json"),
        "image_processor": hashlib.sha256(
            b"".join(_digest_json(file).encode() for file in processors if file.exists())
        ).hexdigest(),
        "weights": headers.hexdigest(),
        "projector": projector.hexdigest(),
    }


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file without its metadata, and the byte offset at which the tensors' data begins.

    Raises:
        UserError: not a safetensors file, or cut short.
    """
    size = file.stat().st_size
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(MAX_HEADER_BYTES, size):
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != size:
            raise ValueError(f"it has {size} bytes where its header asks for {end}")
    except (ValueError, struct.error, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}); fetch it again") from error
    return header, 8 + length


def _digest_json(file: Path) -> str:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as JSON ({error})") from error
    for volatile in ("transformers_version", "_name_or_path"):
        data.pop(volatile, None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
