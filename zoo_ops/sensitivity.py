"""How much a token's projected feature moves when its vision feature does: the zeroth-order sensitivity."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo_ops.closed_form import closed_form_rows
from zoo_ops.constants import ProjectorConstants, projector_constants
from zoo_ops.precision import arithmetic_dtype, full_float32, own_rows, tf32_on_cuda
from zoo_ops.projector import ProjectorSpec, as_projector_spec
from zoo_ops.sampled import directional_rows, draw_directions, finite_difference_rows
from zoo_ops.selectors import SELECTORS, USES_ATTENTION, USES_SENSITIVITY
from zoo_ops.validate import Findings, all_finite, check_finite, check_integer, image_rows

ESTIMATORS = ("closed_form", "directional", "finite_difference")


@torch.no_grad()
def estimate_sensitivity(
    features_BND: Tensor | Sequence[Tensor],
    projector: ProjectorSpec | nn.Module | Callable[[Tensor], Tensor],
    *,
    estimator: str = "closed_form",
    num_directions: int = 64,
    step_size: float = 0.01,
    seed: int = 0,
    num_tokens_B: Tensor | None = None,
) -> Tensor:
    """Sensitivity of every token: (B, N).

        u_j ~ N(0, I), u_j <- u_j / ||u_j||, one bank of m directions shared by all tokens
        finite_difference:  s_i = (1/m) sum_j || M(x_i + h u_j) - M(x_i - h u_j) || / 2h     the published formula
        directional:        s_i = (1/m) sum_j || J_i u_j ||                                   its limit h -> 0
        closed_form:        s_i = sqrt( E_u || J_i u ||^2 ) = || J_i ||_F / sqrt(D)           exact, no directions

    features_BND: what the projector reads, (B, N, D), any floating dtype; D = P d where P patches are merged. Or a
    sequence of B tensors (N_b, D), which are not padded; N is then the largest of the N_b.
    projector: nn.Sequential(Linear, activation, Linear), a ProjectorSpec, or any row-wise map (not closed_form).
    num_directions: m; step_size: h, in units of the features; seed: of the bank, drawn on the CPU. closed_form
    uses none of the three.
    num_tokens_B: (B,) integers, valid tokens of each image when the batch is padded; the tokens beyond are not read
    and their sensitivity is 0. The values of an image do not depend on the batch it came in: padded batches must
    say so here for that to hold to the last bit.
    Returns float32 whatever dtype features and projector have (float64 for float64 features). Units: projected
    feature per unit of vision feature. Arithmetic: that dtype throughout; on CUDA, the products of closed_form read
    float32 operands as TF32, which keeps the rank correlation with float64 above 0.9999.

    Raises ValueError: wrong shapes, devices or settings; NaN or Inf in a valid token (names the image); a linear
    projector, whose sensitivity is the same for every token; closed_form of a projector that has none
    (`preferred_estimator` chooses).
    Source: arXiv 2509.24837, section 3 and Proposition 3.1.
    """
    images = image_rows(features_BND, "features_BND", num_tokens_B)
    prepared = prepare_estimator(
        projector,
        images[0],
        estimator=estimator,
        num_directions=num_directions,
        step_size=step_size,
        seed=seed,
    )
    sensitivity_BN = prepared(images)
    width = features_BND.shape[1] if isinstance(features_BND, Tensor) else sensitivity_BN.shape[1]
    return torch.nn.functional.pad(sensitivity_BN, (0, width - sensitivity_BN.shape[1]))


@torch.no_grad()
def prepare_estimator(
    projector: ProjectorSpec | nn.Module | Callable[[Tensor], Tensor],
    features_ND: Tensor,
    *,
    estimator: str = "closed_form",
    num_directions: int = 64,
    step_size: float = 0.01,
    seed: int = 0,
) -> "PreparedEstimator":
    """What `estimate_sensitivity` makes of its arguments before it reads a feature: for many calls with one projector.

    features_ND: some features, (N, D), whose width, dtype and device are those of all that follow.
    The other arguments, and what is raised, as of `estimate_sensitivity`. The projector's weights are read here, and
    must stay as they are.
    """
    _check_settings(estimator, num_directions, step_size)
    spec = as_projector_spec(projector)
    _check_projector(spec, features_ND, estimator)
    dtype = arithmetic_dtype(features_ND)
    directions_MD = torch.empty(0, features_ND.shape[1])
    if estimator != "closed_form":
        directions_MD = draw_directions(num_directions, features_ND.shape[1], seed=seed)
    with full_float32():
        _refuse_hidden_linear(spec, own_rows(features_ND[:1], dtype))
    directions_MD = directions_MD.to(features_ND.device, dtype)
    return PreparedEstimator(estimator, spec, _constants(spec, estimator, dtype), directions_MD, step_size)


@dataclass(frozen=True, eq=False)
class PreparedEstimator:
    """See `prepare_estimator`."""

    estimator: str
    spec: ProjectorSpec
    constants: ProjectorConstants | None
    directions_MD: Tensor
    step_size: float

    @torch.no_grad()
    def __call__(self, features: Sequence[Tensor], *, findings: Findings | None = None) -> Tensor:
        """Sensitivity of every token, (B, N), of images' features (N_b, D); 0 behind an image's last token.

        findings: is told of NaN and Inf in place of a ValueError; with it, the call does not wait for a GPU.
        """
        dtype = arithmetic_dtype(features[0])
        width = max(rows.shape[0] for rows in features)
        sensitivity_BN = torch.zeros(len(features), width, dtype=dtype, device=features[0].device)
        finite = []
        with full_float32():
            for image, rows in enumerate(features):
                rows_ND = own_rows(rows, dtype)
                finite.append(all_finite(rows_ND))
                sensitivity_BN[image, : rows.shape[0]] = self._of_rows(rows_ND)
        check_finite(finite, "features_BND", findings=findings)
        check_finite([all_finite(row) for row in sensitivity_BN], "the sensitivity", findings=findings)
        return sensitivity_BN

    def _of_rows(self, rows_ND: Tensor) -> Tensor:
        if self.estimator == "closed_form":
            assert self.constants is not None
            with tf32_on_cuda():
                return closed_form_rows(rows_ND, self.spec, self.constants)
        if self.estimator == "directional":
            return directional_rows(rows_ND, self.spec, self.constants, self.directions_MD)
        return finite_difference_rows(rows_ND, self.spec, self.constants, self.directions_MD, self.step_size)


def require_informative(projector: ProjectorSpec | nn.Module, selector: str) -> None:
    """Raise ValueError where `selector` needs the sensitivity and `projector` is linear by its structure."""
    if selector in USES_SENSITIVITY and as_projector_spec(projector).is_linear:
        raise ValueError(_linear_message(f"selector {selector!r}"))


def _linear_message(subject: str) -> str:
    others = ", ".join(name for name in SELECTORS if name not in USES_SENSITIVITY + USES_ATTENTION)
    return (
        f"{subject} needs the projector's sensitivity, but the projector is linear: its Jacobian is constant, every "
        f"token has the same sensitivity, and it carries no information; use one of the selectors {others}"
    )


def _check_settings(estimator: str, num_directions: int, step_size: float) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}, expected one of {', '.join(ESTIMATORS)}")
    check_integer(num_directions, "num_directions", 1)
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size is {step_size}, expected a positive number; the published one is 0.01")


def _check_projector(spec: ProjectorSpec, features_ND: Tensor, estimator: str) -> None:
    if spec.is_linear:
        raise ValueError(_linear_message("estimate_sensitivity"))
    if estimator == "closed_form" and spec.closed_form_obstacle is not None:
        raise ValueError(
            f"estimator 'closed_form' has no formula here: {spec.closed_form_obstacle}; use estimator='directional'"
        )
    if spec.linear_in is None:
        return
    depth, weight = features_ND.shape[-1], spec.linear_in.weight
    if depth != spec.linear_in.in_features:
        raise ValueError(
            f"features_BND has width {depth}, expected {spec.linear_in.in_features}, the projector's input width "
            f"({spec.num_patches} patches); pass what the projector reads, patches of a token one behind the other"
        )
    if weight.device != features_ND.device:
        raise ValueError(
            f"features_BND is on {features_ND.device}, the projector on {weight.device}; move one to the other"
        )


def _constants(spec: ProjectorSpec, estimator: str, dtype: torch.dtype) -> ProjectorConstants | None:
    if estimator == "closed_form":
        return projector_constants(spec, dtype=dtype, purpose="jacobian")
    if None in (spec.linear_in, spec.activation, spec.linear_out):
        return None
    return projector_constants(spec, dtype=dtype, purpose="output")


def _refuse_hidden_linear(spec: ProjectorSpec, rows_ND: Tensor) -> None:
    """An opaque projector that is affine on random rows: M(x) + M(y) = M(x + y) + M(0)."""
    if not spec.is_opaque:
        return
    first, second = draw_directions(2, rows_ND.shape[1], seed=0).to(rows_ND) * rows_ND.shape[1] ** 0.5
    values = spec.project(torch.stack([first, second, first + second, torch.zeros_like(first)]), dtype=rows_ND.dtype)
    if values.dim() != 2 or values.shape[0] != 4:
        raise ValueError(
            f"the projector maps shape (4, {rows_ND.shape[1]}) to {tuple(values.shape)}, expected (4, O): "
            "it must map each row by itself"
        )
    gap = (values[0] + values[1] - values[2] - values[3]).norm()
    if bool(gap <= 1e-5 * values.norm()):
        raise ValueError(_linear_message("estimate_sensitivity"))
