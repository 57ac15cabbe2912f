"""What the estimators need of a projector's weights, computed once per model."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo_ops.precision import full_float32
from zoo_ops.projector import ProjectorSpec

# Blocks on and above the diagonal: 8 of them cut the product to 0.56 (more blocks cut little and cost launches).
TRIANGLE_BLOCKS = 8
# The share of a full product that a form costs, with some for the sums: above it, W2 t goes through W2^T W2.
FORM_SHARE = 0.6
FINGERPRINT_SAMPLES = 4096


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    """A symmetric matrix A (H, H) kept as its blocks on and below the diagonal, the off-diagonal ones doubled.

    panels[r]: rows from block r on, columns of block r. Keeps and multiplies (n + 1) / 2n of the matrix for n blocks.
    """

    panels: tuple[Tensor, ...]

    @classmethod
    def of(cls, matrix_HH: Tensor, blocks: int = TRIANGLE_BLOCKS) -> "QuadraticForm":
        width = -(-matrix_HH.shape[0] // blocks)
        panels = []
        for start in range(0, matrix_HH.shape[0], width):
            panel = matrix_HH[start:, start : start + width].clone()
            panel[width:] *= 2
            panels.append(panel)
        return cls(tuple(panels))

    def __call__(self, vectors_NH: Tensor) -> Tensor:
        """v^T A v for every row v: (N, H) -> (N,)."""
        value_N = vectors_NH.new_zeros(vectors_NH.shape[0])
        start = 0
        for panel in self.panels:
            stop = start + panel.shape[1]
            product = vectors_NH[:, start:] @ panel
            value_N += product.mul_(vectors_NH[:, start:stop]).sum(-1)
            start = stop
        return value_N


@dataclass(frozen=True, eq=False)
class ProjectorConstants:
    """Of a Linear - activation - Linear projector, in the dtype of the arithmetic.

    weight_in_PHd: columns of W1 that read patch p (P = 1 and d = D where no norm acts patch by patch).
    shift_H: b1 + W1 beta.  gain_d: gamma; None for ones.  weight_out_OH: W2.
    jacobian_forms_P: the Q_p of the closed form, with purpose "jacobian".  output_form: W2^T W2, where it is used.
    """

    weight_in_PHd: tuple[Tensor, ...]
    shift_H: Tensor | None
    gain_d: Tensor | None
    weight_out_OH: Tensor
    jacobian_forms_P: tuple[QuadraticForm, ...] | None
    output_form: QuadraticForm | None

    def output_square(self, tangents_NH: Tensor) -> Tensor:
        """||W2 t||^2 for every row t: (N, H) -> (N,); as t^T (W2^T W2) t where that is fewer products."""
        if self.output_form is None:
            return (tangents_NH @ self.weight_out_OH.T).square_().sum(-1)
        return self.output_form(tangents_NH).clamp_min_(0)


def projector_constants(spec: ProjectorSpec, *, dtype: torch.dtype, purpose: str) -> ProjectorConstants:
    """Constants of `spec`, from the cache when its weights are the very ones they were computed from.

    purpose "jacobian": for `closed_form`.  "output": for `directional` and `finite_difference`.

        Q_p = (W1_p gamma^2 W1_p^T [- b_p b_p^T / d for LayerNorm, b_p = W1_p gamma 1]) * (W2^T W2)

    An entry lives as long as the parameter objects (weak references) and counts only while they are the same
    objects, at the same version, storage, dtype and device, with the same sampled values (writes through `.data`
    leave the version alone). Tensors made in inference mode have no version: they are compared by
    sums over all values.
    """
    return _cached(spec, dtype, purpose)


def clear_constants() -> None:
    """Empty the cache."""
    _CACHE.clear()


@dataclass(eq=False)
class _Entry:
    references: tuple[Any, ...]
    stamps: list[tuple[Any, ...]]
    samples: list[Tensor]
    constants: ProjectorConstants


_CACHE: dict[tuple[Any, ...], _Entry] = {}


def _cached(spec: ProjectorSpec, dtype: torch.dtype, purpose: str) -> ProjectorConstants:
    parameters = spec.parameters
    norm = spec.norm
    structure = (spec.num_patches, None if norm is None else (norm.kind, norm.per_patch))
    key = (tuple(map(id, parameters)), structure, dtype, purpose)
    stamps, samples = [_stamp(p) for p in parameters], [_sample(p) for p in parameters]
    entry = _CACHE.get(key)
    if (
        entry is not None
        and all(reference() is p for reference, p in zip(entry.references, parameters, strict=True))
        and entry.stamps == stamps
        and all(torch.equal(old, new) for old, new in zip(entry.samples, samples, strict=True))
    ):
        return entry.constants
    constants = _compute(spec, dtype, purpose)
    forget = lambda _: _CACHE.pop(key, None)  # noqa: E731
    references = tuple(weakref.ref(p, forget) for p in parameters)
    _CACHE[key] = _Entry(references, stamps, samples, constants)
    return constants


def _stamp(parameter: Tensor) -> tuple[Any, ...]:
    version = -1 if parameter.is_inference() else parameter._version
    return version, parameter.data_ptr(), parameter.dtype, parameter.device, tuple(parameter.shape)


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    if parameter.is_inference():
        return torch.stack([flat.double().sum(), flat.double().square().sum()])
    return flat[:: max(1, flat.numel() // FINGERPRINT_SAMPLES)].clone()


@torch.no_grad()
@full_float32()
def _compute(spec: ProjectorSpec, dtype: torch.dtype, purpose: str) -> ProjectorConstants:
    assert spec.linear_in is not None
    assert spec.linear_out is not None
    norm = spec.norm
    patches = spec.num_patches if norm is not None and norm.per_patch else 1
    # Detached: the cache must not keep the parameters alive, or their weak references would never die.
    weight_in = spec.linear_in.weight.detach().to(dtype)
    weight_out = spec.linear_out.weight.detach().to(dtype)
    width = weight_in.shape[1] // patches
    weight_in_PHd = tuple(weight_in.split(width, dim=1))
    shift = None if spec.linear_in.bias is None else spec.linear_in.bias.detach().to(dtype)
    gain = None
    if norm is not None:
        gain = None if norm.weight is None else norm.weight.detach().to(dtype)
        if norm.bias is not None:
            moved = torch.stack([part @ norm.bias.detach().to(dtype) for part in weight_in_PHd]).sum(0)
            shift = moved if shift is None else shift + moved
    output_HH = weight_out.T @ weight_out
    form_pays = weight_out.shape[0] > FORM_SHARE * weight_out.shape[1] and (purpose == "output" or norm is not None)
    output_form = QuadraticForm.of(output_HH) if form_pays else None
    if purpose == "output":
        return ProjectorConstants(weight_in_PHd, shift, gain, weight_out, None, output_form)
    forms = []
    for part_Hd in weight_in_PHd:
        scaled_Hd = part_Hd if gain is None else part_Hd * gain
        matrix_HH = scaled_Hd @ scaled_Hd.T
        if norm is not None and norm.kind == "layer":
            mean_H = scaled_Hd.sum(1) / width**0.5
            matrix_HH.addr_(mean_H, mean_H, alpha=-1)
        forms.append(QuadraticForm.of(matrix_HH.mul_(output_HH)))
    return ProjectorConstants(weight_in_PHd, shift, gain, weight_out, tuple(forms), output_form)
