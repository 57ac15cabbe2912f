"""Sensitivity as a mean over a bank of random directions: `directional` (h -> 0) and `finite_difference`."""

from functools import lru_cache

import torch
from torch import Tensor

from zoo_ops.activations import activation_derivative
from zoo_ops.closed_form import ROWS_AT_A_TIME, NormalisedRows
from zoo_ops.constants import ProjectorConstants
from zoo_ops.projector import ProjectorSpec

CHUNK_BYTES = 64 * 2**20


def draw_directions(num_directions: int, width: int, *, seed: int) -> Tensor:
    """The direction bank: (num_directions, width) float32 unit vectors, uniform on the sphere.

        u_j ~ N(0, I), u_j <- u_j / ||u_j||

    Drawn on the CPU from a generator of its own, so it depends on the three arguments alone. One bank serves all
    tokens (arXiv 2509.24837, section 3).
    """
    return _bank(num_directions, width, seed).clone()


@lru_cache(maxsize=8)
def _bank(num_directions: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions_MD = torch.randn(num_directions, width, generator=generator)
    unit_MD: Tensor = directions_MD / directions_MD.norm(dim=-1, keepdim=True)
    return unit_MD


def directional_rows(
    rows_ND: Tensor, spec: ProjectorSpec, constants: ProjectorConstants | None, directions_MD: Tensor
) -> Tensor:
    """(1/m) sum_j ||J u_j|| for every row: (N, D) -> (N,).

    `constants` of purpose "output", None for a projector that has none.
    Linear - activation - Linear: J u = W2 (g * W1 u), with the norm's derivative where there is one.
    Any other projector: forward-mode differentiation of its forward.
    """
    if constants is None or spec.activation_kind is None:
        return torch.cat([_forward_mode(rows, spec, directions_MD) for rows in rows_ND.split(ROWS_AT_A_TIME)])
    parts = []
    for rows in rows_ND.split(ROWS_AT_A_TIME):
        normal = None if spec.norm is None else NormalisedRows(rows, spec, constants)
        hidden_NH = _hidden(rows, constants) if normal is None else normal.hidden_NH
        slope_NH = activation_derivative(spec.activation_kind, hidden_NH)
        sum_N = torch.zeros_like(rows[:, 0])
        if normal is None:
            for tangent_H in directions_MD @ constants.weight_in_PHd[0].T:
                sum_N += constants.output_square(slope_NH * tangent_H).sqrt_()
        else:
            for direction_D in directions_MD:
                sum_N += constants.output_square(slope_NH * _norm_tangent(direction_D, normal, spec, constants)).sqrt_()
        parts.append(sum_N / directions_MD.shape[0])
    return torch.cat(parts)


def finite_difference_rows(
    rows_ND: Tensor,
    spec: ProjectorSpec,
    constants: ProjectorConstants | None,
    directions_MD: Tensor,
    step_size: float,
) -> Tensor:
    """(1/m) sum_j || M(x + h u_j) - M(x - h u_j) || / 2h for every row: (N, D) -> (N,), as published.

    `constants` of purpose "output", None for a projector that has none.
    Linear layers are taken out of the difference, which changes no value and loses fewer digits: W1 (x + h u) is
    W1 x + h W1 u, and W2 a - W2 b is W2 (a - b).
    """
    parts = []
    for rows in rows_ND.split(ROWS_AT_A_TIME):
        sum_N = torch.zeros_like(rows[:, 0])
        if constants is None:
            for direction_D in directions_MD:
                moved = [spec.project(rows + h * direction_D, dtype=rows.dtype) for h in (step_size, -step_size)]
                sum_N += (moved[0] - moved[1]).norm(dim=-1)
        else:
            assert spec.activation is not None
            hidden_NH = _hidden(rows, constants) if spec.norm is None else None
            shifts_MH = step_size * (directions_MD @ constants.weight_in_PHd[0].T) if hidden_NH is not None else None
            for j, direction_D in enumerate(directions_MD):
                if hidden_NH is not None and shifts_MH is not None:
                    above, below = hidden_NH + shifts_MH[j], hidden_NH - shifts_MH[j]
                else:
                    above = NormalisedRows(rows + step_size * direction_D, spec, constants).hidden_NH
                    below = NormalisedRows(rows - step_size * direction_D, spec, constants).hidden_NH
                sum_N += constants.output_square(spec.activation(above) - spec.activation(below)).sqrt_()
        parts.append(sum_N / (2.0 * step_size * directions_MD.shape[0]))
    return torch.cat(parts)


def _hidden(rows_ND: Tensor, constants: ProjectorConstants) -> Tensor:
    return torch.nn.functional.linear(rows_ND, constants.weight_in_PHd[0], constants.shift_H)


def _norm_tangent(
    direction_D: Tensor, normal: NormalisedRows, spec: ProjectorSpec, constants: ProjectorConstants
) -> Tensor:
    """W1 times the derivative of the norm along `direction_D`: (N, H).

    sum_p [ W1_p gamma u_p - W1_p gamma xh_p (xh_p . u_p) / d ] / sigma_p,   u_p less its mean for LayerNorm
    """
    assert spec.norm is not None
    direction_Pd = direction_D.reshape(len(constants.weight_in_PHd), -1)
    if spec.norm.kind == "layer":
        direction_Pd = direction_Pd - direction_Pd.mean(-1, keepdim=True)
    scaled_Pd = direction_Pd if constants.gain_d is None else direction_Pd * constants.gain_d
    tangent_NH = torch.zeros_like(normal.hidden_NH)
    for p, part_Hd in enumerate(constants.weight_in_PHd):
        along_N = normal.unit_NPd[:, p] @ direction_Pd[p] / direction_Pd.shape[1]
        moved_NH = (part_Hd @ scaled_Pd[p]) - along_N.unsqueeze(-1) * normal.hidden_parts_PNH[p]
        tangent_NH += normal.inverse_scale_NP[:, p : p + 1] * moved_NH
    return tangent_NH


def _forward_mode(rows_ND: Tensor, spec: ProjectorSpec, directions_MD: Tensor) -> Tensor:
    def project(rows: Tensor) -> Tensor:
        return spec.project(rows, dtype=rows_ND.dtype)

    def tangent(direction_D: Tensor) -> Tensor:
        tangent_NO: Tensor = torch.func.jvp(project, (rows_ND,), (direction_D.expand_as(rows_ND),))[1]
        return tangent_NO

    width = max(spec.project(rows_ND[:1], dtype=rows_ND.dtype).shape[-1], rows_ND.shape[1])
    # The tangents of every layer of a chunk are alive at once; eight of the wider side is a fair guess at them.
    at_a_time = max(1, CHUNK_BYTES // (8 * width * rows_ND.shape[0] * rows_ND.element_size()))
    sum_N = torch.zeros_like(rows_ND[:, 0])
    for chunk_MD in directions_MD.split(at_a_time):
        try:
            tangents_MNO = torch.func.vmap(tangent)(chunk_MD)
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"the projector cannot be differentiated in forward mode ({error}); use estimator='finite_difference'"
            ) from error
        sum_N += tangents_MNO.norm(dim=-1).sum(0)
    return sum_N / directions_MD.shape[0]
