"""Onto the L1, L2 and L∞ balls."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.closed_form import Answer
from declarative.layers.projections.base import SizedProjection, rounding
from declarative.layers.projections.box import clipped
from declarative.layers.projections.simplex import threshold
from declarative.structure import Constant, Sparse


class L2BallProjection(SizedProjection):
    """y = argmin ½‖y − x‖²  s.t.  ‖y‖₂ ≤ radius: points outside are pulled straight to the centre.

    Args:
        radius: positive: a number, a tensor that broadcasts with the leading dimensions, a `torch.nn.Parameter`. Also an argument of the call.
        dim: along which the vectors lie.
        differentiation: `Implicit(weakly_active=...)` chooses the side for points on the sphere.

    Shapes:
        x (…, n), radius (…) -> y (…, n). `.solution(x)`: inequality_multipliers μ (…, 1) of ½(‖y‖² − radius²) ≤ 0.

    Raises:
        ValueError, TypeError: radii that are not positive, x that is not finite, shapes that do not fit.

    Example:
        >>> L2BallProjection(5.0)(torch.tensor([[6.0, 8.0], [1.0, 1.0]]))
        tensor([[3., 4.],
                [1., 1.]])

    Source: Parikh & Boyd, "Proximal algorithms", Found. Trends Optim. 1(3), 2014.
    """

    def _inequalities(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y.square().sum(1) - radius.square()).unsqueeze(1)

    def _answer(self, x: Tensor, radius: Tensor) -> Answer:
        size = self._checked(x, radius)
        distance = torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
        weakly = (distance - size).abs() <= rounding(distance, size)
        active = (distance > size) & ~weakly
        held = self._held(active, weakly)
        # The norm of points inside has no part in anything: at the centre it has no derivative.
        norm = torch.linalg.vector_norm(torch.where(held, x, 1.0), dim=1, keepdim=True)
        y = torch.where(held, size * x / norm, x)
        return Answer(y, None, torch.where(active, norm / size - 1, 0.0), active, weakly)


class L1BallProjection(SizedProjection):
    """y = argmin ½‖y − x‖²  s.t.  ‖y‖₁ ≤ radius: outside, entries shrink by one τ, and small ones become zero.

    The nearest point lies in x's own orthant, where the norm is linear: it is stated there, with s = sign(x), as Σ s_i y_i ≤ radius and, for x outside,
    s_i y_i ≥ 0 (inside ≥ −2 radius, which is never reached). So the projection of |x| onto the simplex gives it.

    Args:
        radius: positive: a number, a tensor that broadcasts with the leading dimensions, a `torch.nn.Parameter`. Also an argument of the call.
        dim: along which the vectors lie.
        differentiation: `Implicit(weakly_active=...)` chooses the side at kinks: points on the sphere, entries that are just zero.

    Shapes:
        x (…, n), radius (…) -> y (…, n).
        `.solution(x)`: inequality_multipliers (…, 1 + n): τ of Σ s_i y_i ≤ radius, then those of −s_i y_i ≤ 0.

    Raises:
        ValueError, TypeError: radii that are not positive, x that is not finite, shapes that do not fit.

    Example:
        >>> L1BallProjection(2.0)(torch.tensor([[3.0, -2.0, 0.5], [0.5, 0.5, 0.5]]))
        tensor([[ 1.5000, -0.5000,  0.0000],
                [ 0.5000,  0.5000,  0.5000]])

    Source: Duchi, Shalev-Shwartz, Singer & Chandra, "Efficient projections onto the l1-ball for learning in high dimensions", ICML 2008.
    """

    def _inequalities(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        s = signs(x)
        outside = x.detach().abs().sum(1, keepdim=True) > radius.detach().unsqueeze(1)
        return torch.cat([((s * y).sum(1) - radius).unsqueeze(1), -s * y - torch.where(outside, 0.0, 2 * radius.unsqueeze(1))], 1)

    def _answer(self, x: Tensor, radius: Tensor) -> Answer:
        size, s = self._checked(x, radius), signs(x)
        norm = x.detach().abs().sum(1, keepdim=True)
        on = (norm - size).abs() <= rounding(norm, size)
        beyond = (norm > size) & ~on
        held = self._held(beyond, on)
        found = threshold(s * x, size, self._policies.weakly_active == "active")
        y = torch.where(held, s * found.z, x)
        zero, weakly = found.active & beyond, found.weakly_active & beyond
        tau = torch.where(beyond, found.tau, 0.0)
        mu = torch.where(zero, found.tau - s * x, 0.0)
        return Answer(y, None, torch.cat([tau, mu], 1), torch.cat([beyond, zero], 1), torch.cat([on, weakly], 1))


class LInfBallProjection(SizedProjection):
    """y = argmin ½‖y − x‖²  s.t.  |y_i| ≤ radius: every entry is clipped.

    Args:
        radius: positive: a number, a tensor that broadcasts with the leading dimensions, a `torch.nn.Parameter`. Also an argument of the call.
        dim: along which the vectors lie; radii may differ between them.
        differentiation: `Implicit(weakly_active=...)` chooses the side for entries that are just ±radius.

    Shapes:
        x (…, n), radius (…) -> y (…, n). `.solution(x)`: inequality_multipliers (…, 2n) of −y − radius ≤ 0, then of y − radius ≤ 0.

    Raises:
        ValueError, TypeError: radii that are not positive, x that is not finite, shapes that do not fit.

    Example:
        >>> LInfBallProjection(1.0)(torch.tensor([[3.0, -2.0, 0.5]]))
        tensor([[ 1.0000, -1.0000,  0.5000]])

    Source: Parikh & Boyd, "Proximal algorithms", Found. Trends Optim. 1(3), 2014.
    """

    constraint_structure = Constant(Sparse())

    def _inequalities(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        size = radius.unsqueeze(1)
        return torch.cat([-y - size, y - size], 1)

    def _answer(self, x: Tensor, radius: Tensor) -> Answer:
        size = self._checked(x, radius)
        return clipped(x, -size, size, self._held)


def signs(x: Tensor) -> Tensor:
    """±1, and 1 at zero."""
    return torch.where(x.detach() < 0, -1.0, 1.0).to(x.dtype)
