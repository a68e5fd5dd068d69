"""Projections of weights onto the subspace, or sphere, that a solver distinguishes: before the solve, and through their Jacobian after it.

    centre        c = Pω, P = I − 11ᵀ/n (or a solver's own P)             J = P
    scale         z = ω/‖ω‖                                               J = (I − zzᵀ)/‖ω‖
    standardise   z = Pω/‖Pω‖                                             J = (P − zzᵀ)/‖Pω‖

All three Jacobians are symmetric, so that one product serves both modes. Where the norm is zero, but for rounding (less than 4 eps √n times the
size of the entries), z and J are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.node import DeclarativeNode, InDims
from declarative.solution import Solution
from declarative.transforms import is_differentiated, uncompiled

PROJECTIONS = (None, "centre", "scale", "standardise")
_BLOCK = 2**18  # numbers of a block of rows
_ROUNDING = 4  # norms below this many eps of ‖ω‖ are zero


def centred(weights: Tensor) -> Tensor:
    """(b, n) without the mean of each row."""
    return weights - weights.mean(1, keepdim=True)


@dataclass(frozen=True)
class Projection:
    """One of them, on (b, n).

    Args:
        centre: P; None: the identity.
        scale: whether to divide by the norm.
    """

    centre: Callable[[Tensor], Tensor] | None
    scale: bool

    def apply(self, weights: Tensor) -> Tensor:
        """z (b, n)"""
        moved = weights if self.centre is None else self.centre(weights)
        if not self.scale:
            return moved
        # In units of the largest no square overflows or vanishes: z, and with it the solution, does not depend on the unit.
        largest = moved.detach().abs().amax(1, keepdim=True)
        unit = torch.where(largest > 0, largest, 1.0)
        moved = moved / unit
        return moved * self._inverse_norm(weights / unit, moved)

    def times(self, weights: Tensor, vector: Tensor) -> Tensor:
        """J v (b, n)"""
        rows = max(1, _BLOCK // max(1, weights.shape[1]))
        if not self.scale or weights.numel() <= 4 * _BLOCK or weights.device.type != "cpu" or is_differentiated(weights, vector):
            return self._times(weights, vector)
        # A few rows at a time stay in the cache through all the passes.
        result = torch.empty_like(vector)
        for some in range(0, weights.shape[0], rows):
            self._times(weights[some : some + rows], vector[some : some + rows], result[some : some + rows])
        return result

    def _times(self, weights: Tensor, vector: Tensor, out: Tensor | None = None) -> Tensor:
        moved = vector if self.centre is None else self.centre(vector)
        if not self.scale:
            return moved
        direction = weights if self.centre is None else self.centre(weights)
        inverse = self._inverse_norm(weights, direction)
        along = (direction * moved).sum(1, keepdim=True) * inverse * inverse
        # What somebody else's centring returns may be the vector itself, or a view of it.
        own = self.centre is centred and not is_differentiated(weights, vector)
        bent = moved.addcmul_(direction, along, value=-1) if own else torch.addcmul(moved, direction, along, value=-1)
        return torch.mul(bent, inverse, out=out)

    def _inverse_norm(self, weights: Tensor, moved: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(moved.detach(), dim=1, keepdim=True)
        # Rounding of a constant row is of the size of any of its entries; where the first is an outlier, it is in the norm, too.
        size = weights[:, :1].detach().abs() if self.centre is centred else weights.detach().abs().amax(1, keepdim=True)
        floor = _ROUNDING * torch.finfo(norm.dtype).eps * weights.shape[1] ** 0.5 * size
        there = norm > (0.0 if self.centre is None else floor)
        if is_differentiated(moved):
            # The norm has no derivative at zero: nothing must flow through it there.
            norm = torch.linalg.vector_norm(torch.where(there, moved, 1.0), dim=1, keepdim=True)
        return torch.where(there, 1 / norm, 0.0)


class _ProjectionNode(DeclarativeNode):
    """What the two nodes share: z = argmin_u ½‖u − x‖² under constraints, on the last dimension."""

    scaled = False

    @uncompiled
    def forward(self, x: Tensor, *, in_dims: InDims = 0) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """z, of x's shape."""
        if self.vjp is None:  # a copy that is to do without the structure
            return super().forward(x, in_dims=in_dims)  # pyright: ignore[reportReturnType]
        moved = x.movedim(in_dims, 0) if isinstance(in_dims, int) and in_dims else x
        return self._projection.apply(moved.reshape(-1, moved.shape[-1])).reshape(moved.shape)

    @property
    def _projection(self) -> Projection:
        return Projection(centred, self.scaled)

    def objective(self, x: Tensor, u: Tensor) -> Tensor:
        """½‖u − x‖²"""
        return 0.5 * (u - x).square().sum()

    def equality_constraints(self, x: Tensor, u: Tensor) -> Tensor:  # noqa: ARG002
        """1ᵀu = 0, and ‖u‖² = 1 on the sphere."""
        total = u.sum(-1).flatten()
        return torch.cat([total, 0.5 * (u.square().sum(-1).flatten() - 1)]) if self.scaled else total

    def solve(self, x: Tensor) -> Solution:
        """The closed form."""
        return Solution(self._projection.apply(x.reshape(-1, x.shape[-1])).reshape(x.shape))

    def vjp(self, inputs: tuple[Tensor, ...], solution: Solution, cotangent: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        """J v"""
        (x,) = inputs
        flat = x.reshape(-1, x.shape[-1])
        return (self._projection.times(flat, cotangent.reshape(flat.shape)).reshape(x.shape),)


class Centre(_ProjectionNode):
    """z = x − mean(x), along the last dimension: argmin_u ½‖u − x‖² s.t. 1ᵀu = 0.

    Example:
        >>> Centre()(torch.tensor([1.0, 2.0, 6.0]))
        tensor([-2., -1.,  3.])
    """


class Standardise(_ProjectionNode):
    """z = (x − mean(x))/‖x − mean(x)‖, along the last dimension: argmin_u ½‖u − x‖² s.t. 1ᵀu = 0, ‖u‖ = 1; zero for a constant x.

    Example:
        >>> Standardise()(torch.tensor([1.0, 2.0, 6.0]))
        tensor([-0.5345, -0.2673,  0.8018])

    Source: Sahoo, Paulus et al., "Backpropagation through combinatorial algorithms: identity with projection works", ICLR 2023.
    """

    scaled = True


class QuadraticSurrogate(DeclarativeNode):
    """What the identity method differentiates in place of argmax ⟨z(x), u⟩: argmin_u ½‖u‖² − ⟨z(x), u⟩, whose solution is z(x) itself.

    Its gradient by the generic formula (H = I, B = −I, and the Jacobian of the projection) is the backward pass of the layer: `verify` it.

    Args:
        projection: None, "centre", "scale" or "standardise".
        sense: "max" or "min", for which ⟨z, u⟩ counts with the other sign.

    Example:
        >>> verify(QuadraticSurrogate("standardise"), torch.randn(4, 6, dtype=torch.float64)).ok  # print it for the table
        True
    """

    def __init__(self, projection: str | None = "standardise", sense: str = "max") -> None:
        super().__init__()
        self.projection, self.sign = named(projection, centred, ""), sign_of(sense)

    def objective(self, x: Tensor, u: Tensor) -> Tensor:
        """½‖u‖² ∓ ⟨z(x), u⟩"""
        z = self.projection.apply(x.reshape(1, -1)).reshape(u.shape)
        return 0.5 * u.square().sum() - self.sign * (z * u).sum()

    def solve(self, x: Tensor) -> Tensor:
        """±z(x)"""
        return self.sign * self.projection.apply(x.flatten(1)).reshape(x.shape)


def named(projection: Any, centre: Callable[[Tensor], Tensor] | None, why_not: str) -> Projection:
    """The projection of this name; an error that says why where centring would change the solution."""
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {PROJECTIONS}, got {projection!r}")
    if projection in ("centre", "standardise") and centre is None:
        raise ValueError(f"projection={projection!r} is not valid here: {why_not}. Use projection='scale', or None")
    return Projection(centre if projection in ("centre", "standardise") else None, projection in ("scale", "standardise"))


def sign_of(sense: Any) -> float:
    """1 for "max", −1 for "min"."""
    if sense not in ("max", "min"):
        raise ValueError(f"sense must be 'max' or 'min', got {sense!r}")
    return 1.0 if sense == "max" else -1.0
