"""The analytic centre of a polyhedron {y : Ay ≤ b}.

    min −Σ_i log(b_i − a_i·y)                                                    A: 5×2, b ∈ R⁵, y ∈ R²

With r = b − Ay, d_i = 1/r_i:  ∇ = Aᵀd = 0 and H = Aᵀ diag(d²) A. Differentiating the condition in the entries of A and in b,

    ∂y_j/∂A_kl = −(H⁻¹)_jl d_k − (H⁻¹Aᵀ)_jk d_k² y_l          ∂y/∂b = H⁻¹Aᵀ diag(d²)

A occurs twice, as the outer factor of Aᵀd and inside of d: both terms are needed, and the second is column k of H⁻¹Aᵀ, not row k.
The centre is unique where the polyhedron is bounded and has an interior. The feasible start is a part of the statement: 0 lies inside where b > 0.

Source: Boyd & Vandenberghe, "Convex optimization", 2004, section 8.5.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform
from problems.oracles import root

SIZE = 2
SIDES = ((1.0, 0.0), (0.3, 1.0), (-0.8, 0.6), (-0.8, -0.6), (0.3, -1.0))  # outward normals of a pentagon: bounded, and so are those nearby


class AnalyticCentre(DeclarativeNode):
    """A (q, n), b (q,) > 0 -> y (n,)."""

    def objective(self, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return -(b - A @ y).log().sum()

    def initial_guess(self, A: Tensor, b: Tensor) -> Tensor:  # noqa: ARG002
        return A.new_zeros(A.shape[0], A.shape[2])


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Pentagons of many shapes around 0."""
    A = torch.tensor(SIDES, dtype=torch.float64) + 0.1 * normal(generator, batch, len(SIDES), SIZE)
    return cast(dtype, A, uniform(generator, 0.6, 1.4, batch, len(SIDES)))


def closed_form(A: Tensor, b: Tensor) -> Tensor:
    """Damped Newton steps (the barrier is self-concordant, so that 1/(1 + decrement) stays inside and converges), and the root that they come near to."""

    def slack(y: Tensor) -> Tensor:
        return b - (A @ y.unsqueeze(2)).squeeze(2)

    def field(y: Tensor) -> Tensor:
        return (A.mT @ (1 / slack(y)).unsqueeze(2)).squeeze(2)

    def slope(y: Tensor) -> Tensor:
        return A.mT @ (slack(y).unsqueeze(2).pow(-2) * A)

    y = torch.zeros_like(A[:, 0])
    with torch.no_grad():
        for _ in range(20):
            step = torch.linalg.solve(slope(y), field(y).unsqueeze(2)).squeeze(2)
            decrement = (step * field(y)).sum(1, keepdim=True).sqrt()
            y = y - step / (1 + decrement)
    return root(field, slope, y, steps=5)


def jacobian(A: Tensor, b: Tensor) -> Tensor:
    """∂y_j/∂A_kl, both terms."""
    y = closed_form(A, b)
    d = 1 / (b - (A @ y.unsqueeze(2)).squeeze(2))
    inverse = torch.linalg.inv(A.mT @ (d.square().unsqueeze(2) * A))
    outer = torch.einsum("bjl,bk->bjkl", inverse, d)
    inner = torch.einsum("bji,bki,bk,bl->bjkl", inverse, A, d.square(), y)
    return -outer - inner


PROBLEM = Problem("analytic_centre", AnalyticCentre, sample, (0, 0), closed_form, jacobian, "an objective with a domain; an input that occurs twice")
