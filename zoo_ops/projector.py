"""What the operations need to know of a projector: the map from a vision feature to a language-model embedding."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo_ops.activations import identify_activation


@dataclass(frozen=True, eq=False)
class NormSpec:
    """A norm in front of the projector.

    kind "layer": (x - mean) / sqrt(var + eps) * weight + bias;  "rms": x / sqrt(mean(x^2) + eps) * weight.
    weight, bias: (d,) for per_patch, else (P d,); None when the norm has none.
    per_patch: each of the P patches of a token is normalised alone, before the merge (Qwen2-VL, Qwen2.5-VL,
    Qwen3-VL with use_postshuffle_norm False); otherwise the merged vector is normalised as a whole (InternVL,
    Qwen3-VL with use_postshuffle_norm True). With one patch the two are the same.
    The tensors are read where they are at each call, so in-place updates of the model are seen; build the spec anew
    when a parameter object is replaced by another.
    """

    kind: Literal["layer", "rms"]
    weight: Tensor | None
    bias: Tensor | None = None
    eps: float = 1e-6
    per_patch: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("layer", "rms"):
            raise ValueError(f"norm kind is {self.kind!r}, expected 'layer' or 'rms'; for another norm use opaque()")

    @classmethod
    def of(cls, module: nn.Module, *, per_patch: bool = False) -> "NormSpec":
        """Spec of an nn.LayerNorm or nn.RMSNorm over the last axis.

        Raises ValueError for any other module (give the fields to NormSpec yourself) and for norms over two axes.
        """
        if not isinstance(module, nn.LayerNorm | nn.RMSNorm):
            raise ValueError(f"{type(module).__name__} is no nn.LayerNorm or nn.RMSNorm; give NormSpec its fields")
        if len(module.normalized_shape) != 1:
            raise ValueError(f"norm over {len(module.normalized_shape)} axes, expected the last one only; use opaque()")
        kind: Literal["layer", "rms"] = "layer" if isinstance(module, nn.LayerNorm) else "rms"
        eps = module.eps if module.eps is not None else torch.finfo(torch.float32).eps
        return cls(kind, module.weight, getattr(module, "bias", None), eps, per_patch)


@dataclass(frozen=True, eq=False)
class ProjectorSpec:
    """A projector M: (..., P d) -> (..., O), row by row.

        M(x) = linear_out( activation( linear_in( norm(x) ) ) )

    linear_in: nn.Linear(P d, H). activation: elementwise. linear_out: nn.Linear(H, O). The modules are held, not
    copied. A token's input is its `num_patches` P patch vectors of width d, one behind the other.
    activation None and linear_out None: the single layer linear_in.
    Any other projector: `ProjectorSpec.opaque(forward)`; sensitivity is then `directional` or `finite_difference`.
    """

    linear_in: nn.Linear | None
    activation: Callable[[Tensor], Tensor] | None
    linear_out: nn.Linear | None
    norm: NormSpec | None = None
    num_patches: int = 1
    forward: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.forward is not None:
            return
        if self.linear_in is None:
            raise ValueError("linear_in is None; a projector without it is given by ProjectorSpec.opaque(forward)")
        d_in, patches = self.linear_in.in_features, self.num_patches
        if patches < 1 or d_in % patches:
            raise ValueError(f"num_patches is {patches}, expected a divisor of the projector's input width {d_in}")
        if self.linear_out is not None and self.linear_out.in_features != self.linear_in.out_features:
            raise ValueError(
                f"linear_out reads width {self.linear_out.in_features}, but linear_in gives "
                f"{self.linear_in.out_features}; they must be the two layers of one projector"
            )
        if self.norm is not None:
            width = d_in // patches if self.norm.per_patch else d_in
            for name, tensor in (("weight", self.norm.weight), ("bias", self.norm.bias)):
                if tensor is not None and tuple(tensor.shape) != (width,):
                    raise ValueError(
                        f"norm {name} has shape {tuple(tensor.shape)}, expected ({width},) for input width {d_in}, "
                        f"num_patches={patches}, per_patch={self.norm.per_patch}; set per_patch or num_patches"
                    )

    @classmethod
    def opaque(cls, forward: Callable[[Tensor], Tensor]) -> "ProjectorSpec":
        """Spec of any projector: `forward` maps (n, D) to (n, O), each row by itself.

        An nn.Module is run in float32 whatever the dtype of its weights; another callable must accept float32 rows.
        """
        return cls(None, None, None, forward=forward)

    def __call__(self, features: Tensor) -> Tensor:
        """Projected features: (..., P d) -> (..., O), in the dtype of the model."""
        return self.project(features)

    def project(self, features: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Projected features, (..., P d) -> (..., O).

        dtype: None runs the model's own modules as they are; float32 or float64 does the arithmetic in that dtype.
        """
        if self.forward is not None:
            return self.forward(features) if dtype is None else self._forward_in(features, dtype)
        assert self.linear_in is not None
        if dtype is not None:
            features = features.to(dtype)
        hidden = _linear(self.linear_in, self._normalise(features), dtype)
        if self.activation is not None:
            hidden = self.activation(hidden)
        return hidden if self.linear_out is None else _linear(self.linear_out, hidden, dtype)

    @property
    def is_opaque(self) -> bool:
        return self.forward is not None

    @cached_property
    def activation_kind(self) -> str | None:
        """Key of KNOWN_ACTIVATIONS, None for an activation that is none of them. Opaque projectors: None."""
        return None if self.is_opaque else identify_activation(self.activation)

    @property
    def is_linear(self) -> bool:
        """The map is affine by its structure: every token has the same Jacobian. Opaque projectors: False here;
        `estimate_sensitivity` tests those by value."""
        return not self.is_opaque and self.norm is None and self.activation_kind == "identity"

    @property
    def closed_form_obstacle(self) -> str | None:
        """Why there is no closed form for this projector, None when there is one."""
        if self.is_opaque:
            return "the projector is not of the form Linear - activation - Linear"
        if self.is_linear:
            return "the projector is linear, its Jacobian is the same for every token"
        if self.linear_out is None:
            return "the projector has a single linear layer"
        if self.activation_kind is None:
            return f"the activation {_name(self.activation)} is none of GELU, tanh-GELU, quick-GELU, SiLU, ReLU"
        return None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors the closed form depends on."""
        tensors: list[Tensor | None] = []
        for linear in (self.linear_in, self.linear_out):
            tensors += [] if linear is None else [linear.weight, linear.bias]
        if self.norm is not None:
            tensors += [self.norm.weight, self.norm.bias]
        return tuple(tensor for tensor in tensors if tensor is not None)

    def _normalise(self, features: Tensor) -> Tensor:
        if self.norm is None:
            return features
        norm, shape = self.norm, features.shape
        if norm.per_patch and self.num_patches > 1:
            features = features.reshape(*shape[:-1], self.num_patches, shape[-1] // self.num_patches)
        # Norms are computed in float32 at least, as models do.
        wide = features if features.dtype == torch.float64 else features.float()
        weight = None if norm.weight is None else norm.weight.to(wide.dtype)
        bias = None if norm.bias is None else norm.bias.to(wide.dtype)
        if norm.kind == "layer":
            normal = functional.layer_norm(wide, wide.shape[-1:], weight, bias, norm.eps)
        else:
            normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
            normal = normal if weight is None else normal * weight
        return normal.to(features.dtype).reshape(shape)

    def _forward_in(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        assert self.forward is not None
        if not isinstance(self.forward, nn.Module):
            return self.forward(features.to(dtype))
        state: dict[str, Any] = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in (*self.forward.named_parameters(), *self.forward.named_buffers())
        }
        projected: Tensor = torch.func.functional_call(self.forward, state, (features.to(dtype),))
        return projected


def as_projector_spec(projector: "ProjectorSpec | nn.Module | Callable[[Tensor], Tensor]") -> ProjectorSpec:
    """Spec of a module.

    A ProjectorSpec passes through. nn.Linear and nn.Sequential(Linear, activation, Linear), with or without a leading
    nn.LayerNorm or nn.RMSNorm (nested Sequentials opened, Dropout and Identity passed over), are recognised.
    Everything else is opaque.
    """
    if isinstance(projector, ProjectorSpec):
        return projector
    if not isinstance(projector, nn.Module):
        if not callable(projector):
            raise ValueError(f"projector is a {type(projector).__name__}, expected an nn.Module or a ProjectorSpec")
        return ProjectorSpec.opaque(projector)
    layers = _flat_layers(projector)
    norm: NormSpec | None = None
    if isinstance(layers[0], nn.LayerNorm | nn.RMSNorm) and len(layers[0].normalized_shape) == 1:
        norm, layers = NormSpec.of(layers[0]), layers[1:]
    match layers:
        case [linear] if _is_plain_linear(linear):
            return ProjectorSpec(linear, None, None, norm=norm)
        case [first, second] if _is_plain_linear(first) and _is_plain_linear(second):
            return ProjectorSpec(first, None, second, norm=norm)
        case [first, activation, second] if _is_plain_linear(first) and _is_plain_linear(second):
            return ProjectorSpec(first, activation, second, norm=norm)
    return ProjectorSpec.opaque(projector)


def preferred_estimator(projector: "ProjectorSpec | nn.Module", requested: str = "closed_form") -> str:
    """The estimator to run for `projector`: `requested`, or "directional" where a closed form is asked for and
    there is none (`as_projector_spec(projector).closed_form_obstacle` says why)."""
    if requested == "closed_form" and as_projector_spec(projector).closed_form_obstacle is not None:
        return "directional"
    return requested


def _linear(linear: nn.Linear, rows: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None:
        projected: Tensor = linear(rows)
        return projected
    bias = None if linear.bias is None else linear.bias.to(dtype)
    return functional.linear(rows, linear.weight.to(dtype), bias)


def _flat_layers(module: nn.Module) -> list[Any]:
    if not isinstance(module, nn.Sequential):
        return [module]
    layers = [layer for child in module for layer in _flat_layers(child)]
    return [layer for layer in layers if not isinstance(layer, nn.Identity | nn.Dropout)] or [module]


def _is_plain_linear(layer: object) -> bool:
    """Exactly nn.Linear with floating weights: a subclass (quantised, adapted) may compute something else."""
    return type(layer) is nn.Linear and layer.weight.is_floating_point()


def _name(activation: object) -> str:
    return getattr(activation, "__name__", type(activation).__name__)
