"""Projections onto a box, a half-space and an affine subspace, which are inputs.

    min ½‖y − x‖²   s.t.   l ≤ y ≤ u,   or aᵀy ≤ b,   or Ay = b                        x, y ∈ R⁴

Box: y = clip(x, l, u), ∂y/∂x = diag(1_S), S the entries between the bounds. Half-space: y = x − μ a with μ = max(0, aᵀx − b)/‖a‖²,
∂y/∂x = I − aaᵀ/‖a‖² where μ > 0. Affine subspace: y = x − Aᵀν with AAᵀν = Ax − b, ∂y/∂x = I − Aᵀ(AAᵀ)⁻¹A.

Source: Parikh & Boyd, "Proximal algorithms", Found. Trends Optim. 1(3), 2014, section 6.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE, EQUATIONS = 4, 2


class Nearest(DeclarativeNode):
    """x (n,) and what the set is made of -> y (n,)."""

    def initial_guess(self, x: Tensor, *rest: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(x)


class Box(Nearest):
    """x, l, u (n,) -> y (n,)."""

    def objective(self, x: Tensor, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([lower - y, y - upper])


class HalfSpace(Nearest):
    """x, a (n,), b () -> y (n,)."""

    def objective(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return a @ y - b


class AffineSubspace(Nearest):
    """x (n,), A (p, n), b (p,) -> y (n,)."""

    def objective(self, x: Tensor, A: Tensor, b: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, A: Tensor, b: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return A @ y - b


def sample_box(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Entries below, between and above by turns, clearly."""
    lower, width = uniform(generator, -1.0, -0.3, batch, SIZE), uniform(generator, 0.8, 1.6, batch, SIZE)
    place = (torch.arange(SIZE) + torch.arange(batch).unsqueeze(1)) % 3
    share = torch.tensor([-0.6, 0.2, 1.3], dtype=torch.float64)[place] + uniform(generator, 0.0, 0.4, batch, SIZE)
    return cast(dtype, lower + share * width, lower, lower + width)


def sample_half_space(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """By turns inside and outside."""
    x, a = normal(generator, batch, SIZE), normal(generator, batch, SIZE)
    side = torch.where(torch.arange(batch) % 2 == 0, -1.0, 1.0)
    return cast(dtype, x, a, (a * x).sum(1) + side * uniform(generator, 0.5, 1.5, batch) * torch.linalg.vector_norm(a, dim=1))


def sample_affine(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do; one matrix for all."""
    return cast(dtype, normal(generator, batch, SIZE), normal(generator, EQUATIONS, SIZE), normal(generator, batch, EQUATIONS))


def box(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """clip(x, l, u)"""
    return torch.minimum(torch.maximum(x, lower), upper)


def half_space(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x − μ a"""
    return x - a * (((a * x).sum(1) - b).clamp_min(0) / a.square().sum(1)).unsqueeze(1)


def affine(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """x − Aᵀν"""
    return x - torch.linalg.solve(A @ A.mT, (x @ A.mT - b).mT).mT @ A


def jacobian_box(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """diag(1_S)"""
    return torch.diag_embed(((x > lower) & (x < upper)).to(x.dtype))


def jacobian_half_space(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """I − aaᵀ/‖a‖² outside."""
    outside = ((a * x).sum(1) > b).to(x.dtype)[:, None, None]
    return torch.eye(x.shape[1], dtype=x.dtype) - outside * a.unsqueeze(2) * a.unsqueeze(1) / a.square().sum(1)[:, None, None]


def jacobian_affine(x: Tensor, A: Tensor, b: Tensor) -> Tensor:  # noqa: ARG001
    """I − Aᵀ(AAᵀ)⁻¹A"""
    n = x.shape[1]
    return (torch.eye(n, dtype=x.dtype) - A.mT @ torch.linalg.solve(A @ A.mT, A)).expand(x.shape[0], n, n)


PROBLEMS = (
    Problem("box", Box, sample_box, (0, 0, 0), box, jacobian_box, "bounds of each entry and sample, as inputs"),
    Problem("half_space", HalfSpace, sample_half_space, (0, 0, 0), half_space, jacobian_half_space, "one linear inequality whose normal is an input"),
    Problem("affine_subspace", AffineSubspace, sample_affine, (0, None, 0), affine, jacobian_affine, "equations with a matrix that is an input and shared"),
)
