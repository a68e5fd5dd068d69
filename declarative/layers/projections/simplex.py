"""Onto the simplex, and `Sparsemax`, which is that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.layers.closed_form import Answer, reject
from declarative.layers.projections.base import EDGE, SizedProjection
from declarative.projections import Simplex
from declarative.structure import Constant, Sparse

_TOUCHING = {torch.float64: 1e-11, torch.float32: 1e-5}  # how near to zero, beside the mean of the support, counts as zero


@dataclass(frozen=True)
class Threshold:
    """Onto {z ≥ 0, Σz = t}: z = x − τ on the support and 0 elsewhere, with the one τ for which the sum is t.

    Args:
        tau: (b, 1)
        z: (b, n)
        active, weakly_active: (b, n) entries at zero: those that are pushed there, and those that are just not.
    """

    tau: Tensor
    z: Tensor
    active: Tensor
    weakly_active: Tensor


def threshold(x: Tensor, total: Tensor, hold_weak: bool) -> Threshold:
    """x (b, n); total (b, 1) > 0. Entries that are weakly active count as equations if `hold_weak`."""
    with torch.no_grad():
        # In units of the total, and less the largest: what is summed is then of the size of 1.
        largest = x.amax(1, keepdim=True)
        shifted = x - largest
        support = Simplex().project(shifted / total) > 0
        tau = (torch.where(support, shifted, 0.0).sum(1, keepdim=True) - total) / support.sum(1, keepdim=True)
        slack = shifted - tau
        edge = _TOUCHING[x.dtype] * total / support.sum(1, keepdim=True) + 4 * EDGE * torch.finfo(x.dtype).eps * total
        active, weakly = slack < -edge, slack.abs() <= edge
        free = ~active & ~weakly if hold_weak else ~active
    moved = x - largest
    tau = (torch.where(free, moved, 0.0).sum(1, keepdim=True) - total) / free.sum(1, keepdim=True)
    z = torch.where(free, moved - tau, 0.0)
    z = z + (z.clamp_min(0.0) - z).detach()  # rounding at entries that are weakly active
    return Threshold(tau + largest, z, active, weakly)


class SimplexProjection(SizedProjection):
    """y = argmin ½‖y − x‖²  s.t.  Σy = total, y ≥ 0: sparse, and never far from x.

    y = max(x − τ, 0) with the one τ that makes the sum right, found by sorting. Differentiable to any order, in reverse and forward mode and under
    torch.func, in x and total.

    Args:
        total: positive: a number, a tensor that broadcasts with the leading dimensions, a `torch.nn.Parameter`. Also an argument of the call.
        dim: along which the vectors lie.
        differentiation: `Implicit(weakly_active=...)` chooses the side at entries that are just zero.

    Shapes:
        x (…, n), total (…) -> y (…, n). Entries −inf are out (a mask): y is zero there.
        `.solution(x)`: equality_multipliers τ (…, 1), inequality_multipliers μ (…, n) of −y ≤ 0.

    Raises:
        ValueError, TypeError: totals that are not positive, NaN or +inf in x, samples that are −inf throughout, shapes that do not fit.

    Example:
        >>> SimplexProjection()(torch.tensor([[1.0, 0.0, 0.5]]))
        tensor([[0.7500, 0.0000, 0.2500]])

    Source: Held, Wolfe & Crowder, "Validation of subgradient optimization", Math. Programming 6, 1974; Martins & Astudillo, "From softmax to
    sparsemax", ICML 2016.
    """

    arguments = ("x", "total")
    constraint_structure = Constant(Sparse())

    def __init__(self, total: float | Tensor = 1.0, *, dim: int = -1, differentiation: Differentiation | None = None) -> None:
        super().__init__(total, dim=dim, differentiation=differentiation)

    def _objective(self, *tensors_and_y: Tensor) -> Tensor:
        """½‖y − x‖²"""
        x, total, y = tensors_and_y
        return super()._objective(_unmasked(x, total), y)

    def _equalities(self, x: Tensor, total: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (y.sum(1) - total).unsqueeze(1)

    def _inequalities(self, x: Tensor, total: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return -y

    def _answer(self, x: Tensor, total: Tensor) -> Answer:
        size = self._checked(x, total, finite=False)
        wrong = ~(x < torch.inf).all(1) | (x == -torch.inf).all(1)
        reject(type(self).__name__, wrong, "x must be finite, or −inf in some entries, but has NaN, +inf or −inf throughout")
        x = _unmasked(x, total)
        found = threshold(x, size, self._policies.weakly_active == "active")
        mu = torch.where(found.active, found.tau - x, 0.0)
        return Answer(found.z, found.tau, mu, found.active, found.weakly_active)


def _unmasked(x: Tensor, total: Tensor) -> Tensor:
    """−inf is replaced by a number so far below the largest that the projection is zero there as well."""
    low = x.detach().amax(1, keepdim=True) - 2 * total.detach().unsqueeze(1)
    return torch.where(x.detach() == -torch.inf, low, x)


class Sparsemax(SimplexProjection):
    """The projection of logits onto the probability simplex: a softmax that is exactly zero where logits are low.

    Args:
        dim: along which the distributions lie.
        differentiation: as in `SimplexProjection`.

    Shapes:
        logits (…, n) -> y (…, n), y ≥ 0, Σy = 1; logits −inf are masked.

    Raises:
        ValueError, TypeError: as `SimplexProjection`.

    Example:
        >>> Sparsemax(dim=-1)(torch.tensor([[2.0, 1.5, 0.1, float("-inf")]]))
        tensor([[0.7500, 0.2500, 0.0000, 0.0000]])

    Source: Martins & Astudillo, "From softmax to sparsemax: a sparse model of attention and multi-label classification", ICML 2016.
    """

    def __init__(self, dim: int = -1, *, differentiation: Differentiation | None = None) -> None:
        super().__init__(1.0, dim=dim, differentiation=differentiation)
