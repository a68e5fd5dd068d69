"""Onto the L1, L2 and L∞ spheres. These are not convex: from some points inside, several points of the sphere are equally near."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.closed_form import Answer
from declarative.layers.projections.balls import signs
from declarative.layers.projections.base import EDGE, SizedProjection, rounding
from declarative.layers.projections.simplex import threshold


class L2SphereProjection(SizedProjection):
    """y = argmin ½‖y − x‖²  s.t.  ‖y‖₂ = radius: x, brought to that length.

    Args:
        radius: positive: a number, a tensor that broadcasts with the leading dimensions, a `torch.nn.Parameter`. Also an argument of the call.
        dim: along which the vectors lie.
        differentiation: x = 0 is as near to every point: y is then one of them, and `Implicit(irregular=...)` says what its derivative is to be.

    Shapes:
        x (…, n), radius (…) -> y (…, n). `.solution(x)`: equality_multipliers ν (…, 1) of ½(‖y‖² − radius²) = 0.

    Raises:
        ValueError, TypeError: radii that are not positive, x that is not finite, shapes that do not fit.
        IrregularPointError: x = 0 is differentiated, with irregular="raise".

    Example:
        >>> L2SphereProjection()(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([[0.6000, 0.8000],
                [0.6000, 0.8000]])

    Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022.
    """

    def _equalities(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y.square().sum(1) - radius.square()).unsqueeze(1)

    def _answer(self, x: Tensor, radius: Tensor) -> Answer:
        size = self._checked(x, radius)
        # In units of the largest entry no square overflows or vanishes.
        largest = x.detach().abs().amax(1, keepdim=True)
        nowhere = largest == 0
        first = torch.zeros_like(x.detach())
        first[:, 0] = 1.0
        scaled = torch.where(nowhere, first, x / torch.where(nowhere, 1.0, largest))
        norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        nu = torch.where(nowhere, 0.0, largest * norm) / size - 1
        return Answer(size * scaled / norm, nu, irregular=nowhere.squeeze(1), cause="x = 0 is equally near to all points of the sphere")


class L1SphereProjection(SizedProjection):
    """y = argmin ½‖y − x‖²  s.t.  ‖y‖₁ = radius.

    The nearest point lies in x's own orthant, where the norm is linear: it is stated there, with s = sign(x), as Σ s_i y_i = radius, s_i y_i ≥ 0. So the
    projection of |x| onto the simplex gives it.

    Args:
        radius: positive: a number, a tensor that broadcasts with the leading dimensions, a `torch.nn.Parameter`. Also an argument of the call.
        dim: along which the vectors lie.
        differentiation: an entry that is zero, of a point inside, goes either way: y is then one of the nearest points, and `Implicit(irregular=...)` says
            what its derivative is to be. `Implicit(weakly_active=...)` chooses the side at entries that are just zero.

    Shapes:
        x (…, n), radius (…) -> y (…, n).
        `.solution(x)`: equality_multipliers τ (…, 1), negative inside; inequality_multipliers (…, n) of −s_i y_i ≤ 0.

    Raises:
        ValueError, TypeError: radii that are not positive, x that is not finite, shapes that do not fit.
        IrregularPointError: points with several nearest points are differentiated, with irregular="raise".

    Example:
        >>> L1SphereProjection(2.0)(torch.tensor([[3.0, -2.0, 0.5], [0.5, -0.5, 0.5]]))
        tensor([[ 1.5000, -0.5000,  0.0000],
                [ 0.6667, -0.6667,  0.6667]])

    Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022.
    """

    def _equalities(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        return ((signs(x) * y).sum(1) - radius).unsqueeze(1)

    def _inequalities(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return -signs(x) * y

    def _answer(self, x: Tensor, radius: Tensor) -> Answer:
        size, s = self._checked(x, radius), signs(x)
        found = threshold(s * x, size, self._policies.weakly_active == "active")
        mu = torch.where(found.active, found.tau - s * x, 0.0)
        several = (x.detach() == 0).any(1) & (found.tau.detach() < -rounding(size)).squeeze(1)
        cause = "an entry is zero and the point inside the sphere, so that both signs are equally near"
        return Answer(s * found.z, found.tau, mu, found.active, found.weakly_active, several, cause)


class LInfSphereProjection(SizedProjection):
    """y = argmin ½‖y − x‖²  s.t.  max |y_i| = radius: outside, entries are clipped; inside, the largest entry is moved to ±radius.

    Stated with k = argmax |x_i| and s = sign(x_k): s y_k = radius, and |y_i| ≤ radius for the others (2 radius for y_k).

    Args:
        radius: positive: a number, a tensor that broadcasts with the leading dimensions, a `torch.nn.Parameter`. Also an argument of the call.
        dim: along which the vectors lie.
        differentiation: where several entries of a point inside are largest, y is one of several nearest points, and `Implicit(irregular=...)` says what its
            derivative is to be. `Implicit(weakly_active=...)` chooses the side for entries that are just ±radius.

    Shapes:
        x (…, n), radius (…) -> y (…, n).
        `.solution(x)`: equality_multipliers (…, 1), negative inside; inequality_multipliers (…, 2n) of −y − radius ≤ 0, then of y − radius ≤ 0.

    Raises:
        ValueError, TypeError: radii that are not positive, x that is not finite, shapes that do not fit.
        IrregularPointError: points with several nearest points are differentiated, with irregular="raise".

    Example:
        >>> LInfSphereProjection()(torch.tensor([[3.0, -2.0, 0.5], [0.1, -0.5, 0.4]]))
        tensor([[ 1.0000, -1.0000,  0.5000],
                [ 0.1000, -1.0000,  0.4000]])

    Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022.
    """

    def _equalities(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        return ((_largest(x) * signs(x) * y).sum(1) - radius).unsqueeze(1)

    def _inequalities(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        bound = radius.unsqueeze(1) * (1 + _largest(x))
        return torch.cat([-y - bound, y - bound], 1)

    def _answer(self, x: Tensor, radius: Tensor) -> Answer:
        size = self._checked(x, radius)
        k, s = _largest(x) > 0, signs(x)
        gap = s * x - size
        weakly = (gap.detach().abs() <= rounding(x, size)) & ~k
        active = (gap.detach() > 0) & ~weakly & ~k
        y = torch.where(k | self._held(active, weakly), s * size, x)
        mu = torch.where(active, gap, 0.0)
        low = s < 0
        sides = [torch.cat([mask & low, mask & ~low], 1) for mask in (active, weakly)]
        ordered = x.detach().abs().topk(min(2, x.shape[1]), dim=1).values
        near = EDGE * torch.finfo(x.dtype).eps * ordered[:, 0]
        several = (ordered[:, 0] == 0) if x.shape[1] == 1 else ordered[:, 0] - ordered[:, 1] <= near
        inside = ordered[:, 0] < (size - rounding(size)).detach().squeeze(1)
        nu = torch.where(k, gap, 0.0).sum(1, keepdim=True)
        both = torch.cat([torch.where(low, mu, 0.0), torch.where(low, 0.0, mu)], 1)
        cause = "several entries are the largest, inside the sphere, so that several points are equally near"
        return Answer(y, nu, both, sides[0], sides[1], several & inside, cause)


def _largest(x: Tensor) -> Tensor:
    """1 at the first of the largest |x_i|, 0 elsewhere."""
    x = x.detach().abs()
    return torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0)
