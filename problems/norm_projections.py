"""Projections onto the balls and spheres of the L1 and L∞ norms; those of the L2 norm are `ball` and `sphere`.

    min ½‖y − x‖²   s.t.   ‖y‖ ≤ r, or ‖y‖ = r                                      x, y ∈ Rⁿ, r > 0

These norms have kinks, but the nearest point lies in x's own orthant, where they do not: with s = sign(x),

    L1 ball     Σ s_i y_i ≤ r, and s_i y_i ≥ 0 for x outside (inside, where entries may change sign, −2r, which is never reached)
    L1 sphere   Σ s_i y_i = r, s_i y_i ≥ 0
    L∞ ball     −r ≤ y_i ≤ r
    L∞ sphere   s_k y_k = r for k = argmax |x_i|, −r ≤ y_i ≤ r for the others (±2r for y_k)

L1: |y| is the projection of |x| onto the simplex of sum r, by sorting. L∞: y = clip(x, −r, r), and y_k = s_k r on the sphere. With S the entries
that are free (L1: those not at zero, L∞: those not at ±r) ∂y/∂x = diag(1_S) − s_S s_Sᵀ/|S| for L1 outside the ball, diag(1_S) for L∞.

Source: Duchi et al., "Efficient projections onto the l1-ball for learning in high dimensions", ICML 2008; Gould, Hartley & Campbell, "Deep declarative
networks", IEEE TPAMI 44(8), 2022 (spheres).
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 4


def sign(x: Tensor) -> Tensor:
    """±1."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


class L1Ball(DeclarativeNode):
    """x (n,), r () -> y (n,)."""

    def objective(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        s = sign(x)
        return torch.cat([((s * y).sum() - radius).reshape(1), -s * y - torch.where(x.abs().sum() > radius, 0.0, 2 * radius)])

    def initial_guess(self, x: Tensor, radius: Tensor) -> Tensor:
        return 0.5 * radius.unsqueeze(1) * sign(x) / x.shape[1]


class L1Sphere(L1Ball):
    """x (n,), r () -> y (n,)."""

    def equality_constraints(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        return (sign(x) * y).sum() - radius

    def inequality_constraints(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return -sign(x) * y


class LInfBall(L1Ball):
    """x (n,), r () -> y (n,)."""

    def inequality_constraints(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([-y - radius, y - radius])


class LInfSphere(L1Ball):
    """x (n,), r () -> y (n,)."""

    def equality_constraints(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        return (largest(x) * sign(x) * y).sum() - radius

    def inequality_constraints(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        bound = radius * (1 + largest(x))
        return torch.cat([-y - bound, y - bound])


def largest(x: Tensor) -> Tensor:
    """1 at the largest |x_i|, 0 elsewhere, along the last dimension."""
    return torch.nn.functional.one_hot(x.abs().argmax(-1), x.shape[-1]).to(x.dtype)


def signed(magnitudes: Tensor, generator: torch.Generator) -> Tensor:
    """With random signs."""
    return magnitudes * normal(generator, *magnitudes.shape).sign()


def sample_l1(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Drawn from the answer: by turns inside, and outside with one, two or three entries that are not zero."""
    radius = uniform(generator, 0.8, 1.5, batch)
    inside = (torch.arange(batch) % 2 == 1).unsqueeze(1)
    rank = normal(generator, batch, SIZE).argsort(1).argsort(1)
    support = (rank < 1 + torch.arange(batch).unsqueeze(1) // 2 % 3) | inside
    weights = uniform(generator, 0.3, 1.0, batch, SIZE) * support
    y = weights / weights.sum(1, keepdim=True) * radius.unsqueeze(1)
    tau = uniform(generator, 0.5, 1.0, batch, 1)
    outside = torch.where(support, y + tau, uniform(generator, 0.1, 0.4, batch, SIZE))
    return cast(dtype, signed(torch.where(inside, 0.7 * y, outside), generator), radius)


def sample_linf(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """By turns all entries inside, clearly apart, and some of them outside."""
    radius = uniform(generator, 0.8, 1.2, batch)
    steps = normal(generator, batch, SIZE).argsort(1).argsort(1) + uniform(generator, 0.3, 0.7, batch, SIZE)
    reach = torch.where(torch.arange(batch) % 2 == 0, 0.6, 2.0).unsqueeze(1)
    magnitudes = steps / SIZE * reach
    clear = (magnitudes - radius.unsqueeze(1)).abs() > 0.05
    return cast(dtype, signed(torch.where(clear, magnitudes, magnitudes + 0.2), generator), radius)


def l1(x: Tensor, radius: Tensor, *, ball: bool) -> Tensor:
    """By sorting."""
    magnitudes, column = x.abs(), radius.unsqueeze(1)
    descending = magnitudes.sort(dim=1, descending=True).values
    excess = descending.cumsum(1) - column
    counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    support = (descending * counts > excess).sum(1, keepdim=True)
    y = sign(x) * (magnitudes - excess.gather(1, support - 1) / support).clamp_min(0)
    return torch.where(ball & (magnitudes.sum(1, keepdim=True) <= column), x, y)


def linf(x: Tensor, radius: Tensor, *, ball: bool) -> Tensor:
    """By clipping; inside the sphere the largest entry moves."""
    column = radius.unsqueeze(1)
    clipped = torch.minimum(torch.maximum(x, -column), column)
    return clipped if ball else torch.where(largest(x) > 0, sign(x) * column, clipped)


def jacobian_l1(x: Tensor, radius: Tensor, *, ball: bool) -> Tensor:
    """diag(1_S) − s_S s_Sᵀ/|S|; I inside the ball."""
    free = (l1(x, radius, ball=ball) != 0).to(x.dtype)
    s = free * sign(x)
    outside = torch.diag_embed(free) - s.unsqueeze(2) * s.unsqueeze(1) / free.sum(1)[:, None, None]
    inside = ball & (x.abs().sum(1) <= radius)
    return torch.where(inside[:, None, None], torch.eye(x.shape[1], dtype=x.dtype), outside)


def jacobian_linf(x: Tensor, radius: Tensor, *, ball: bool) -> Tensor:
    """diag(1_S)"""
    return torch.diag_embed((linf(x, radius, ball=ball).abs() < radius.unsqueeze(1)).to(x.dtype))


def _problem(name: str, node: type[L1Ball], note: str) -> Problem:
    ball, one = name.endswith("ball"), name.startswith("l1")
    known, slope = (l1, jacobian_l1) if one else (linf, jacobian_linf)
    return Problem(
        name,
        node,
        sample_l1 if one else sample_linf,
        (0, 0),
        lambda x, radius: known(x, radius, ball=ball),
        lambda x, radius: slope(x, radius, ball=ball),
        note,
    )


PROBLEMS = (
    _problem("l1_ball", L1Ball, "a norm with kinks, stated in the orthant of its input"),
    _problem("l1_sphere", L1Sphere, "not convex, multipliers of both signs"),
    _problem("linf_ball", LInfBall, "bounds on both sides that are an input"),
    _problem("linf_sphere", LInfSphere, "not convex; which constraint is an equation depends on the input"),
)
