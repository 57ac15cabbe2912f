"""Checks shared by the operations. Every message names the value, what was expected and the remedy."""

import torch
from torch import Tensor


def check_floating(tensor: Tensor, name: str, axes: str) -> None:
    """`tensor` is floating-point with as many axes as `axes` has letters, none of them empty."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, expected a tensor with axes {axes}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected a floating-point one; convert it with .float()")
    if tensor.dim() != len(axes):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected {len(axes)} axes {axes}; "
            "one image is a batch of one, add the axis with [None]"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected at least one element on every axis {axes}")


def token_counts(num_tokens_B: Tensor | None, batch: int, width: int) -> list[int]:
    """Valid tokens of each image: all `width` of them without `num_tokens_B`."""
    if num_tokens_B is None:
        return [width] * batch
    counts = torch.as_tensor(num_tokens_B)
    if tuple(counts.shape) != (batch,) or counts.is_floating_point():
        raise ValueError(
            f"num_tokens_B has shape {tuple(counts.shape)} and dtype {counts.dtype}, expected ({batch},) integers, "
            "one count per image"
        )
    values = [int(count) for count in counts.tolist()]
    for image, count in enumerate(values):
        if not 1 <= count <= width:
            raise ValueError(
                f"num_tokens_B is {count} for image {image} of the batch, expected 1 to {width} (the padded length); "
                "leave images without tokens out of the batch"
            )
    return values


def check_finite(finite: list[Tensor], name: str, images: list[int] | None = None) -> None:
    """Raise for the first flag that is False, naming its image (its place in the list without `images`).

    One transfer for the whole batch.
    """
    flags = torch.stack(finite).tolist() if finite else []
    if not all(flags):
        place = flags.index(False)
        image = place if images is None else images[place]
        raise ValueError(
            f"{name} of image {image} of the batch holds NaN or Inf (or values beyond float32), "
            "expected finite numbers; leave the image out, or find where the model overflowed "
            "(float16 towers do: run them in bfloat16 or float32)"
        )


def all_finite(rows: Tensor) -> Tensor:
    """Scalar bool tensor: no NaN or Inf in `rows`. A sum carries either of them along, in one pass over memory."""
    return rows.sum().isfinite() if rows.dtype in (torch.float32, torch.float64) else rows.float().sum().isfinite()


def check_integer(value: int, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
