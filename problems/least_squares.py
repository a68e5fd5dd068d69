"""Weighted least squares with a ridge for each coefficient.

    min ½ Σ_i w_i (A y − b)_i² + ½ Σ_j λ_j y_j²                                       A: 6×3, w > 0, λ ≥ 0

(AᵀWA + Λ) y = AᵀWb,   ∂y/∂b = (AᵀWA + Λ)⁻¹AᵀW.

Source: Björck, "Numerical methods for least squares problems", SIAM, 1996.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

POINTS, SIZE = 6, 3


class LeastSquares(DeclarativeNode):
    """b (m,), A (m, n), w (m,), λ (n,) -> y (n,)."""

    def objective(self, b: Tensor, A: Tensor, weights: Tensor, ridge: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (weights * (A @ y - b).square()).sum() + 0.5 * (ridge * y.square()).sum()

    def initial_guess(self, b: Tensor, A: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(A[:, 0])


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    A, b = normal(generator, batch, POINTS, SIZE), normal(generator, batch, POINTS)
    return cast(dtype, b, A, uniform(generator, 0.5, 2.0, batch, POINTS), uniform(generator, 0.1, 0.5, batch, SIZE))


def _normal(A: Tensor, weights: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    weighted = A.mT * weights.unsqueeze(1)
    return weighted @ A + torch.diag_embed(ridge), weighted


def closed_form(b: Tensor, A: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:
    """The normal equations."""
    gram, weighted = _normal(A, weights, ridge)
    return torch.linalg.solve(gram, weighted @ b.unsqueeze(2)).squeeze(2)


def jacobian(b: Tensor, A: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:  # noqa: ARG001
    """(AᵀWA + Λ)⁻¹AᵀW"""
    return torch.linalg.solve(*_normal(A, weights, ridge))


PROBLEM = Problem("least_squares", LeastSquares, sample, (0, 0, 0, 0), closed_form, jacobian, "unconstrained and quadratic, in four inputs")
