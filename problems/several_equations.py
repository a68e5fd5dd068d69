"""Several equality constraints at once: a linear and a curved one. (Linear ones alone are in linear_projections.py.)

    circle_in_space    min ½‖y − x‖²     s.t.  a·y = 0, ½‖y‖² = ½        x, a, y ∈ R³              y = Px/‖Px‖, P = I − aaᵀ/‖a‖²
    ellipsoid          min c·y + ½yᵀQy   s.t.  yᵀQy = 1, a·y = 0         c, a, y ∈ R³, Q shared    y = −Mc/√(cᵀMc)

with M = Q⁻¹ − Q⁻¹a aᵀQ⁻¹/(aᵀQ⁻¹a). In the last one ½yᵀQy is the same at all feasible points, so that y does not know of it: it only makes the objective convex.
H = (1 + 2ν₁)Q with 1 + 2ν₁ = √(cᵀMc): the curvature is that of constraint and objective together.

Not regular: where Px = 0 every point of the circle is as near as any other; where Mc = 0 every feasible point is as good.

Source: Nocedal & Wright, "Numerical Optimization", 2006, section 12.1; the formulas by elimination.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal


class CircleInSpace(DeclarativeNode):
    """x (3,), a (3,) -> the nearest y (3,) of the unit circle across a."""

    def objective(self, x: Tensor, a: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, a: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return torch.stack([a @ y, 0.5 * (y @ y - 1)])

    def initial_guess(self, x: Tensor, a: Tensor) -> Tensor:  # noqa: ARG002
        return normalize(x, dim=1)


class Ellipsoid(DeclarativeNode):
    """c (3,), Q (3, 3), a (3,) -> the lowest y (3,) of the ellipse that the plane cuts out."""

    def objective(self, c: Tensor, Q: Tensor, a: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return c @ y + 0.5 * y @ Q @ y

    def equality_constraints(self, c: Tensor, Q: Tensor, a: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return torch.stack([y @ Q @ y - 1, a @ y])

    def initial_guess(self, c: Tensor, Q: Tensor, a: Tensor) -> Tensor:  # noqa: ARG002
        return -normalize(c, dim=1)


def circle_sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Everything near one direction each, so that the projection is far from zero whichever x meets whichever a."""
    f64 = torch.float64
    x = torch.tensor([1.0, 0.5, 0.0], dtype=f64) + 0.25 * normal(generator, batch, 3)
    return cast(dtype, x, torch.tensor([0.0, 0.3, 1.0], dtype=f64) + 0.25 * normal(generator, batch, 3))


def ellipsoid_sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """The same, and one positive definite matrix."""
    c, a = circle_sample(batch, generator, torch.float64)
    root = normal(generator, 3, 3)
    return cast(dtype, c, torch.eye(3, dtype=torch.float64) + 0.3 * root @ root.T, a)


def _in_plane(x: Tensor, a: Tensor) -> Tensor:
    """Px."""
    return x - a * ((a * x).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True))


def circle_closed_form(x: Tensor, a: Tensor) -> Tensor:
    """Onto the plane, and then out onto the circle."""
    flat = _in_plane(x, a)
    return flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True)


def circle_jacobian(x: Tensor, a: Tensor) -> Tensor:
    """(P − yyᵀ)/‖Px‖."""
    y, unit = circle_closed_form(x, a), normalize(a, dim=1)
    along = torch.eye(3, dtype=x.dtype) - unit.unsqueeze(2) * unit.unsqueeze(1) - y.unsqueeze(2) * y.unsqueeze(1)
    return along / torch.linalg.vector_norm(_in_plane(x, a), dim=1)[:, None, None]


def ellipsoid_closed_form(c: Tensor, Q: Tensor, a: Tensor) -> Tensor:
    """−Mc/√(cᵀMc), Q being symmetric as far as yᵀQy can tell."""
    both = torch.linalg.solve(0.5 * (Q + Q.mT), torch.stack([c, a], 2))
    step = both[..., 0] - both[..., 1] * ((a * both[..., 0]).sum(1, keepdim=True) / (a * both[..., 1]).sum(1, keepdim=True))
    return -step / (c * step).sum(1, keepdim=True).sqrt()


PROBLEMS = (
    Problem("circle_in_space", CircleInSpace, circle_sample, (0, 0), circle_closed_form, circle_jacobian, "a linear and a curved equation"),
    Problem(
        "ellipsoid",
        Ellipsoid,
        ellipsoid_sample,
        (0, None, 0),
        ellipsoid_closed_form,
        None,
        "H = (1 + 2ν)Q: curvature of objective and constraint, where either alone would not do",
    ),
)
