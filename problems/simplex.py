"""Euclidean projection onto the probability simplex.

    min ½‖y − x‖²   s.t.   Σ y_i = 1,   y ≥ 0                                    x, y ∈ R⁵

y = max(x − τ, 0) with the one τ that makes the sum 1; sorting x finds the support S, and τ = (Σ_S x_i − 1)/|S|.
Away from a change of support, ∂y/∂x = diag(1_S) − 1_S 1_Sᵀ/|S|.

Source: Held, Wolfe & Crowder, "Validation of subgradient optimization", Mathematical Programming 6, 1974; Duchi et al.,
"Efficient projections onto the l1-ball for learning in high dimensions", ICML 2008.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 5


class SimplexProjection(DeclarativeNode):
    """x (n,) -> the nearest y (n,) with y ≥ 0 and Σy = 1."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.sum() - 1

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return -y

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 1 / x.shape[-1])


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Drawn from the answer: supports of different sizes, each entry clearly on or clearly off its support."""
    sizes = 1 + (2 * torch.arange(batch) + 1) % SIZE
    rank = normal(generator, batch, SIZE).argsort(1).argsort(1)
    support = rank < sizes.unsqueeze(1)
    weights = uniform(generator, 0.3, 1.0, batch, SIZE) * support
    y = weights / weights.sum(1, keepdim=True)
    gaps = uniform(generator, 0.2, 1.0, batch, SIZE)
    return cast(dtype, normal(generator, batch, 1) + torch.where(support, y, -gaps))


def closed_form(x: Tensor) -> Tensor:
    """By sorting."""
    descending = x.sort(dim=1, descending=True).values
    excess = descending.cumsum(1) - 1
    counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    support = (descending * counts > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (x - threshold).clamp_min(0)


def jacobian(x: Tensor) -> Tensor:
    """diag(1_S) − 1_S 1_Sᵀ/|S|."""
    support = (closed_form(x) > 0).to(x.dtype)
    return torch.diag_embed(support) - support.unsqueeze(2) * support.unsqueeze(1) / support.sum(1)[:, None, None]


PROBLEM = Problem("simplex", SimplexProjection, sample, (0,), closed_form, jacobian, "equality and inequalities; active sets differ between samples")
