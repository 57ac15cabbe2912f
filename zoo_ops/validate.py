"""Checks shared by the operations. Every message names the value, what was expected and the remedy."""

from collections.abc import Collection, Sequence

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


class Findings:
    """What operations find out about a batch on its device, where it lies until somebody looks.

    An operation that is given one raises nothing that it would have to wait for the device to know. The caller copies
    `flags` to the host together with the results, and has `raise_first` raise what the operation would have raised.
    """

    def __init__(self) -> None:
        self._flags: list[Tensor] = []
        self._subjects: list[tuple[str, int]] = []

    def note(self, finite: Sequence[Tensor], name: str, images: Sequence[int]) -> None:
        """Scalar flags, each of which says whether `name` of an image is finite."""
        self._flags += finite
        self._subjects += [(name, image) for image in images]

    def flags(self) -> Tensor:
        """All flags, (F,) bool, True for what is as it should be."""
        return torch.stack(self._flags) if self._flags else torch.ones(0, dtype=torch.bool)

    def raise_first(self, flags: Sequence[bool], *, ignoring: Collection[int] = ()) -> None:
        """Raise ValueError for the first of `flags` that is False, but for those of the images in `ignoring`."""
        for (name, image), finite in zip(self._subjects, flags, strict=True):
            if not finite and image not in ignoring:
                raise ValueError(
                    f"{name} of image {image} of the batch holds NaN or Inf (or values beyond float32), "
                    "expected finite numbers; leave the image out, or find where the model overflowed "
                    "(float16 towers do: run them in bfloat16 or float32)"
                )


def check_finite(
    finite: Sequence[Tensor], name: str, images: Sequence[int] | None = None, findings: Findings | None = None
) -> None:
    """Raise for the first flag that is False, naming its image (its place in the list without `images`).

    One transfer for the whole batch; with `findings` none, and nothing is raised here.
    """
    noted = findings or Findings()
    noted.note(finite, name, range(len(finite)) if images is None else images)
    if findings is None and finite:
        noted.raise_first(noted.flags().tolist())


def all_finite(rows: Tensor) -> Tensor:
    """Scalar bool tensor: no NaN or Inf in `rows`. A sum carries either of them along, in one pass over memory."""
    return rows.sum().isfinite() if rows.dtype in (torch.float32, torch.float64) else rows.float().sum().isfinite()


def image_rows(features: Tensor | Sequence[Tensor], name: str, num_tokens_B: Tensor | None) -> list[Tensor]:
    """The valid rows of each image, (N_b, D): of a padded batch (B, N, D), or of a sequence that holds just them."""
    if isinstance(features, Tensor):
        check_floating(features, name, "BND")
        counts = token_counts(num_tokens_B, features.shape[0], features.shape[1])
        return [rows[:count] for rows, count in zip(features, counts, strict=True)]
    if num_tokens_B is not None:
        raise ValueError(f"num_tokens_B is given with {name} as a sequence, whose tensors say it; leave it out")
    if not features:
        raise ValueError(f"{name} is an empty sequence, expected a tensor (N, D) for every image")
    for rows in features:
        if not isinstance(rows, Tensor) or rows.dim() != 2:
            raise ValueError(f"{name} is a sequence, expected tensors with axes ND in it, one for every image")
        check_floating(rows, name, "ND")
    first = features[0]
    for rows in features:
        if (rows.shape[1], rows.dtype, rows.device) != (first.shape[1], first.dtype, first.device):
            raise ValueError(
                f"{name} holds rows of {rows.shape[1]} {rows.dtype} on {rows.device} and of {first.shape[1]} "
                f"{first.dtype} on {first.device}, expected the same of all images"
            )
    return list(features)


def check_integer(value: int, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
