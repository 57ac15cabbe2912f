"""From what `--model` says to a folder, the family that handles it, and an identity that two runs can compare."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig

from pipeline.errors import UserError
from pipeline.families import FAMILIES, family_of
from pipeline.families.base import Checkpoint, Family
from pipeline.families.loading import first_line
from pipeline.storage import StorageError
from pipeline.storage.fetched import fetched_folder
from pipeline.storage.paths import as_address, is_object, refuse_url

_NEEDED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# What poses a prompt: the tokenizer's files, chat templates, wherever they are kept.
_PROMPTING_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
                    "chat_template*", "processor_config.json")  # fmt: skip
# Names that language-model tensors begin with, in old and new checkpoints of all families.
_LANGUAGE_WEIGHTS = re.compile(r"(model\.)*(language_model|text_model|lm_head|layers|embed_tokens|norm)\.")
_READ_BYTES = 8 << 20
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_SHARD_NAME = re.compile(r"model-\d+-of-\d+\.safetensors")
MAX_HEADER_BYTES = 100 << 20
_MOST_SAID = 300  # characters of a library's own message
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # as safetensors names them


def open_checkpoint(name: str) -> tuple[Checkpoint, Family]:
    """Find the checkpoint and the family that handles it.

    Args:
        name: a folder, the address of one in an object store, or a hub id (`org/name` or `org/name@revision`); of the
            latter two what is needed is downloaded, or taken from the local cache.

    Raises:
        UserError: no such model, no usable config, an architecture without an adapter, no safetensors weights, an
            adapter that is not merged, or shards that are not those of its index.
    """
    instead = "name its folder, or its hub id (org/name), which is fetched for you"
    path, revision, address = Path(name).expanduser(), None, None
    if is_object(name):
        address = as_address("--model", name, instead)
        path = _fetched(address)
    else:
        refuse_url("--model", name, instead)
    if not os.path.isdir(path):  # unlike `Path.is_dir`, also of a name too long for a file
        path = _download(name)
        revision = path.name
    as_written = _config_as_written(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # it checks values by computing with them, and raises many unrelated types
        if "auto_map" in as_written:
            raise UserError(
                f"--model {name}: its config.json (auto_map) asks for code of its own to be run, which is never done; "
                "use a checkpoint in the form of Transformers' own models"
            ) from error
        said = " ".join(str(error).split())[:_MOST_SAID]
        raise UserError(
            f"--model {name}: config.json can't be used ({type(error).__name__}: {said}); fetch the checkpoint again, "
            "or correct the file"
        ) from error
    family = family_of(config.model_type)
    if family is None:
        raise UserError(
            f"--model {name}: model type {config.model_type!r} is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}"
        )
    reason = _quantised(as_written) or family.refusal(config)
    if reason is not None:
        raise UserError(f"--model {name}: {reason}")
    if not isinstance(config.image_token_id, int) or config.image_token_id < 0:
        raise UserError(
            f"--model {name}: the image token in its config.json is {config.image_token_id!r}, no token's id; "
            "correct the file"
        )
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"--model {name}: adapter_config.json lies beside its weights; adapters are not applied, merge it into the "
            "checkpoint or remove it"
        )
    weight_files(path, name)
    return Checkpoint(path.resolve(), name, config, revision, address), family


def _config_as_written(path: Path) -> dict[str, Any]:
    """What config.json holds, or nothing where it holds no object: Transformers says what is wrong with it."""
    try:
        data = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _quantised(config: dict[str, Any]) -> str | None:
    """Why a config with quantised weights, of the whole model or of a part, can't be handled; None if it has none."""
    for name, value in config.items():
        if name in ("quantization_config", "compression_config") and value:
            method = value.get("quant_method", "unnamed") if isinstance(value, dict) else value
            return f"its config.json has a {name} ({method}); weights are loaded as they are, use those not quantised"
        if isinstance(value, dict) and (reason := _quantised(value)) is not None:
            return reason
    return None


def weight_files(path: Path, name: str) -> list[Path]:
    """The safetensors files that make up a checkpoint: those of its index or, without an index, its only one.

    Args:
        path: its folder.
        name: as the user gave it.

    Raises:
        UserError: there is none, some are missing, or there are shards that the index does not know.
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


def _fetched(address: str) -> Path:
    """The folder on this node that holds what a model needs of what lies at an address."""
    try:
        return fetched_folder(address, _NEEDED_FILES)
    except FileNotFoundError as error:
        raise UserError(f"--model {address}: no file of a model lies there; correct the address") from error
    except StorageError as error:
        raise UserError(f"--model {address} can't be read: {error.strerror}") from error


def _download(name: str) -> Path:
    """The folder of a snapshot in the hub's cache; its name is the commit."""
    hub_id = _HUB_ID.fullmatch(name)
    if hub_id is None or Path(name).parent.is_dir():
        raise UserError(f"--model {name}: no such folder, and not a hub id of the form org/name or org/name@revision")
    try:
        return Path(snapshot_download(hub_id[1], revision=hub_id[2], allow_patterns=_NEEDED_FILES))
    except Exception as error:  # the hub client raises many unrelated types; all of them mean: not to be had
        raise UserError(
            f"--model {name}: no such folder, and the hub does not give it ({first_line(error)})"
        ) from error


def identity(checkpoint: Checkpoint, family: Family) -> dict[str, str]:
    """What must be the same for two prune runs to use the same model.

    That is everything but the language model's own tensors.

    Returns:
        `family` and lower-case hex sha256 values: `config` (config.json as canonical JSON), `image_processor`,
        `weights` (every safetensors header: names, dtypes, shapes, offsets), `projector` and `vision` (names, shapes
        and raw bytes of the projector's tensors, and of all that are not the language model's).
    """
    processors = [checkpoint.path / name for name in _IMAGE_PROCESSOR_FILES]
    return {
        **_identity(checkpoint, family, vision=lambda name: not _LANGUAGE_WEIGHTS.match(name)),
        "image_processor": hashlib.sha256(
            b"".join(_digest_json(file).encode() for file in processors if file.exists())
        ).hexdigest(),
    }


def answering_identity(checkpoint: Checkpoint, family: Family) -> dict[str, str]:
    """What must be the same for two answer runs to use the same model.

    That is everything but the vision tower, which answering does not read.

    Returns:
        as `identity`, with `language` (the language model's tensors), `prompting` (tokenizer and chat template) and
        `generation` (generation_config.json) in place of `vision` and `image_processor`.
    """
    generation = checkpoint.path / "generation_config.json"
    prompting = hashlib.sha256()
    for file in sorted({file for pattern in _PROMPTING_FILES for file in checkpoint.path.glob(pattern)}):
        if file.is_file():
            prompting.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return {
        **_identity(checkpoint, family, language=lambda name: bool(_LANGUAGE_WEIGHTS.match(name))),
        "prompting": prompting.hexdigest(),
        "generation": _digest_json(generation) if generation.exists() else "none",
    }


def _identity(checkpoint: Checkpoint, family: Family, **parts: Callable[[str], bool]) -> dict[str, str]:
    """Hashes of config, headers, projector and the named parts of the tensors, of which each is read once."""
    headers = hashlib.sha256()
    parts["projector"] = lambda name: bool(re.search(family.projector_weights, name))
    wanted: list[tuple[Path, int, str, dict[str, Any]]] = []
    for file in weight_files(checkpoint.path, checkpoint.name):
        header, data_begin = read_header(file)
        headers.update(file.name.encode() + json.dumps(header, sort_keys=True).encode())
        wanted += [
            (file, data_begin, name, entry)
            for name, entry in header.items()
            if any(belongs(name) for belongs in parts.values())
        ]
    wanted.sort(key=lambda one: one[2])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter's lock
        digests = list(pool.map(_digest_tensor, wanted))
    hashes = {part: hashlib.sha256() for part in parts}
    found = dict.fromkeys(parts, 0)
    for (_, _, name, entry), digest in zip(wanted, digests, strict=True):
        for part, belongs in parts.items():
            if belongs(name):
                hashes[part].update(f"{name} {entry['dtype']} {entry['shape']} {digest}\n".encode())
                found[part] += 1
    if not found["projector"]:
        raise UserError(
            f"--model {checkpoint.name}: no projector weights (/{family.projector_weights}/) in its safetensors files; "
            f"is it a complete {family.name} checkpoint?"
        )
    return {
        "family": family.name,
        "config": _digest_json(checkpoint.path / "config.json"),
        "weights": headers.hexdigest(),
        **{part: digest.hexdigest() for part, digest in hashes.items()},
    }


def _digest_tensor(wanted: tuple[Path, int, str, dict[str, Any]]) -> str:
    file, data_begin, _, entry = wanted
    begin, end = entry["data_offsets"]
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as stream:
        stream.seek(data_begin + begin)
        left = end - begin
        while left:
            data = stream.read(min(left, _READ_BYTES))
            if not data:
                raise UserError(f"{file} became shorter while it was read; fetch it again")
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file without its metadata, and the byte offset at which the tensors' data begins.

    Raises:
        UserError: the file is no safetensors file, or it was cut short.
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


def stored_dtype(checkpoint: Checkpoint) -> str:
    """The floating dtype of the first tensor by name, which stands for all of them."""
    header, _ = read_header(weight_files(checkpoint.path, checkpoint.name)[0])
    return next(
        (_DTYPES[header[name]["dtype"]] for name in sorted(header) if header[name]["dtype"] in _DTYPES), "float32"
    )


def _digest_json(file: Path) -> str:
    try:
        data = json.loads(file.read_bytes())
        if not isinstance(data, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as JSON ({error})") from error
    for volatile in ("transformers_version", "_name_or_path"):
        data.pop(volatile, None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
