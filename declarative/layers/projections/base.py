"""What all projections share: y = argmin ½‖y − x‖² over a set, for vectors along one dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.layers.closed_form import ClosedFormLayer, reject
from declarative.layers.natural import read
from declarative.layers.natural_layer import Call
from declarative.structure import ScaledIdentity, ScaledIdentityInput

EDGE = 8  # units of rounding by which a point may miss a face that it is on


class ProjectionLayer(ClosedFormLayer):
    """The nearest point of a set. With the active constraints known, y is a formula of x and of what the set is made of."""

    hessian_structure = ScaledIdentity()
    mixed_structure = ScaledIdentityInput(0, -1.0)

    def __init__(self, *, dim: int = -1, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"{type(self).__name__}: dim must be an int, got {dim!r}")
        self.dim = dim

    def _objective(self, *tensors_and_y: Tensor) -> Tensor:
        """½‖y − x‖²"""
        return 0.5 * (tensors_and_y[-1] - tensors_and_y[0]).square().sum(1)

    def _read(self, inputs: tuple[Any, ...]) -> Call:
        owner, (x, *others) = type(self).__name__, inputs
        if not isinstance(x, Tensor):
            raise TypeError(f"{owner}: x must be a tensor (…, n), got {type(x).__name__}; wrap it in torch.as_tensor")
        if not -x.ndim <= self.dim < x.ndim:
            raise ValueError(f"{owner}: x of shape {tuple(x.shape)} has no dimension dim={self.dim}; pass vectors (…, n), or another dim")
        dim = self.dim - x.ndim if self.dim >= 0 else self.dim
        named = {"x": (x if dim == -1 else x.movedim(dim, -1), 1)}
        for name, value, rank in zip(self.arguments[1:], others, self.ranks[1:], strict=True):
            named[name] = (self._own(name, value, x), rank)
        lead, tensors = read(owner, named)
        if not tensors[0].shape[-1]:
            raise ValueError(f"{owner}: x of shape {tuple(x.shape)} has no entries along dim={self.dim}; pass vectors of one entry or more")
        call = Call(lead, (tensors[0].expand(lead.batch, -1), *tensors[1:]), dim)
        self._check_sizes(call.tensors)
        return call

    def _check_sizes(self, tensors: tuple[Tensor, ...]) -> None:
        """Raise unless the instances' shapes fit together."""

    def extra_repr(self) -> str:
        """For `print`."""
        own = [f"{name}={_shown(getattr(self, name))}" for name in self.arguments[1:] if getattr(self, name, None) is not None]
        return ", ".join([*own, f"dim={self.dim}"] if self.dim != -1 else own)


class SizedProjection(ProjectionLayer):
    """Onto a set with one size, positive, for each sample: a radius."""

    arguments = ("x", "radius")
    ranks = (1, 0)

    def __init__(self, radius: float | Tensor = 1.0, *, dim: int = -1, differentiation: Differentiation | None = None) -> None:
        super().__init__(dim=dim, differentiation=differentiation)
        self._keep(self.arguments[1], radius)

    def _checked(self, x: Tensor, size: Tensor, *, finite: bool = True) -> Tensor:
        """The size as a column."""
        if finite:
            self._check_finite(x)
        wrong = ~((size > 0) & torch.isfinite(size))
        reject(type(self).__name__, wrong, f"{self.arguments[1]} must be positive and finite; learn its logarithm if it may not stay so")
        return size.unsqueeze(1)


def rounding(*sizes: Tensor) -> Tensor:
    """How far apart two numbers may be, computed from terms of these sizes, that are to be equal."""
    largest = sizes[0].detach().abs()
    for size in sizes[1:]:
        largest = torch.maximum(largest, size.detach().abs())
    return EDGE * torch.finfo(largest.dtype).eps * largest


def _shown(value: Any) -> str:
    if isinstance(value, torch.nn.Parameter):
        return "learned"
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) and value.ndim else f"{float(value):g}"
