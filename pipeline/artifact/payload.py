"""Kept features as bytes: one safetensors payload per image, in pick order, in the stored dtype.

Members: `features` (K, O); `deepstack.<level>` (K, O) where a family has them; int8 adds `<name>_scale` (K,) float32
(`scale` for `features`), with value = int8 * scale.
"""

import json
from collections.abc import Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}  # as safetensors names them


def _scale_name(name: str) -> str:
    return "scale" if name == "features" else f"{name}_scale"


def pack_features(tensors: Mapping[str, Tensor], dtype: str) -> bytes:
    """Serialise (K, O) tensors.

    Args:
        tensors: by member name; `features` among them.
        dtype: a torch dtype's name, `model` or int8; `model` keeps every bit, int8 is symmetric with one scale a token.

    Raises:
        OverflowError: a value does not fit into float16.
    """
    members = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if dtype == "model":
            members[name] = tensor.contiguous()
        elif dtype == "int8":
            values = tensor.float()
            scale = values.abs().amax(dim=-1).clamp_min(torch.finfo(torch.float32).tiny) / 127
            members[name] = (values / scale[:, None]).round().clamp(-127, 127).to(torch.int8).contiguous()
            members[_scale_name(name)] = scale.contiguous()
        else:
            stored = tensor.to(getattr(torch, dtype)).contiguous()
            if not torch.isfinite(stored).all():
                raise OverflowError(
                    f"{name} holds values beyond the range of {dtype}; use --feature-dtype bfloat16 or model"
                )
            members[name] = stored
    return save(members)


def packed_size(widths: Mapping[str, int], num_kept: int, dtype: str) -> int:
    """Bytes of the payload that `pack_features` makes of (num_kept, width) tensors.

    Args:
        widths: by member name.
        num_kept: tokens of the image that are stored.
        dtype: a torch dtype's name, or int8.
    """
    offset = 0
    header = {}
    for name, width in widths.items():
        members = {name: (width, dtype), **({_scale_name(name): (1, "float32")} if dtype == "int8" else {})}
        for member, (columns, kind) in members.items():
            size = num_kept * columns * getattr(torch, kind).itemsize
            shape = [num_kept, columns] if member == name else [num_kept]
            header[member] = {"dtype": _STORED[kind], "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + offset


def unpack_features(payload: bytes) -> dict[str, Tensor]:
    """The (K, O) tensors of a payload; int8 members come back as float32."""
    members = load(payload)
    tensors = {}
    for name, tensor in members.items():
        if name == "scale" or name.endswith("_scale"):
            continue
        if tensor.dtype == torch.int8:
            tensor = tensor.float() * members[_scale_name(name)][:, None]
        tensors[name] = tensor
    return tensors
