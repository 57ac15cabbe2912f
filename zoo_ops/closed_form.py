"""Sensitivity in closed form: the root-mean-square of ||J u|| over all unit directions, exactly."""

import torch
from torch import Tensor

from zoo_ops.activations import activation_derivative
from zoo_ops.constants import ProjectorConstants
from zoo_ops.projector import ProjectorSpec

# Rows at a time: bounds memory; a constant, so that the arithmetic of an image depends on the image alone.
ROWS_AT_A_TIME = 1024


def closed_form_rows(rows_ND: Tensor, spec: ProjectorSpec, constants: ProjectorConstants) -> Tensor:
    """sqrt(E_u ||J u||^2) = ||J||_F / sqrt(D) for every row: (N, D) -> (N,); `constants` of purpose "jacobian".

        M(x) = W2 act(W1 x + b1) + b2:   ||J||_F^2 = g^T Q g,   g = act'(W1 x + b1),   Q = (W1 W1^T) * (W2^T W2)

    With a norm of width d in front, P patches merged, xh_p the normalised patch before its gain gamma:

        ||J||_F^2 = sum_p sigma_p^-2 [ g^T Q_p g - (2/d - ||xh_p||^2 / d^2) || W2 (g * (W1_p gamma xh_p)) ||^2 ]
    """
    assert constants.jacobian_forms_P is not None
    assert spec.activation_kind is not None
    parts = []
    for rows in rows_ND.split(ROWS_AT_A_TIME):
        if spec.norm is None:
            weight_in, shift = constants.weight_in_PHd[0], constants.shift_H
            slope_NH = activation_derivative(spec.activation_kind, torch.nn.functional.linear(rows, weight_in, shift))
            parts.append(constants.jacobian_forms_P[0](slope_NH))
            continue
        normal = NormalisedRows(rows, spec, constants)
        slope_NH = activation_derivative(spec.activation_kind, normal.hidden_NH)
        square_N = torch.zeros_like(rows[:, 0])
        for p, form in enumerate(constants.jacobian_forms_P):
            radial_N = constants.output_square(slope_NH * normal.hidden_parts_PNH[p])
            square_N += normal.inverse_scale_NP[:, p].square() * (form(slope_NH) - normal.shrink_NP[:, p] * radial_N)
        parts.append(square_N)
    # A sum of squares can come out below zero by rounding where it is zero.
    return torch.cat(parts).clamp_min_(0).div_(rows_ND.shape[1]).sqrt_()


class NormalisedRows:
    """Rows after the norm of `spec`, patch by patch, and what its derivative needs.

    inverse_scale_NP: 1 / sigma_p.  unit_NPd: xh_p, before gain and bias.  hidden_parts_PNH: W1_p gamma xh_p.
    shrink_NP: 2/d - ||xh_p||^2 / d^2 (1/d, but for eps).  hidden_NH: the input of the activation.
    """

    def __init__(self, rows_ND: Tensor, spec: ProjectorSpec, constants: ProjectorConstants) -> None:
        assert spec.norm is not None
        patches = len(constants.weight_in_PHd)
        patches_NPd = rows_ND.reshape(rows_ND.shape[0], patches, -1)
        if spec.norm.kind == "layer":
            patches_NPd = patches_NPd - patches_NPd.mean(-1, keepdim=True)
        width = patches_NPd.shape[-1]
        self.inverse_scale_NP = torch.rsqrt(patches_NPd.square().mean(-1) + spec.norm.eps)
        self.unit_NPd = patches_NPd * self.inverse_scale_NP.unsqueeze(-1)
        self.shrink_NP = 2.0 / width - self.unit_NPd.square().sum(-1) / width**2
        scaled_NPd = self.unit_NPd if constants.gain_d is None else self.unit_NPd * constants.gain_d
        self.hidden_parts_PNH = [scaled_NPd[:, p] @ part.T for p, part in enumerate(constants.weight_in_PHd)]
        hidden_NH = torch.stack(self.hidden_parts_PNH).sum(0) if patches > 1 else self.hidden_parts_PNH[0]
        self.hidden_NH = hidden_NH if constants.shift_H is None else hidden_NH + constants.shift_H
