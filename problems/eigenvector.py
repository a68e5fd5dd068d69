"""The eigenvector of the largest eigenvalue of a symmetric matrix.

    min −½ yᵀXy   s.t.   ‖y‖² = 1                                                      X: 4×4

The multiplier of ½(‖y‖² − 1) is the largest eigenvalue λ, and with (·)⁺ the pseudo-inverse dy = (λI − X)⁺ dX y: where λ is simple y is regular, up to its
sign. Every other eigenvector is a saddle point. Only the symmetric part of X counts.

Source: Magnus, "On differentiating eigenvalues and eigenvectors", Econometric Theory 1(2), 1985.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 4


class Eigenvector(DeclarativeNode):
    """X (n, n) -> y (n,), of the two the one with Σy > 0."""

    def objective(self, X: Tensor, y: Tensor) -> Tensor:
        return -0.5 * y @ X @ y

    def equality_constraints(self, X: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y.square().sum() - 1)

    def initial_guess(self, X: Tensor) -> Tensor:
        return torch.full_like(X[:, 0], X.shape[-1] ** -0.5)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Drawn from the answer: y not far from (1, …, 1)/√n, its eigenvalue clearly the largest; and a skew part, which must not matter."""
    first = 1 + 0.3 * normal(generator, batch, SIZE, 1)
    basis = torch.linalg.qr(torch.cat([first, normal(generator, batch, SIZE, SIZE - 1)], 2)).Q
    values = torch.cat([uniform(generator, 2.0, 3.0, batch, 1), uniform(generator, -1.0, 1.0, batch, SIZE - 1)], 1)
    skew = normal(generator, batch, SIZE, SIZE)
    return cast(dtype, (basis * values.unsqueeze(1)) @ basis.mT + 0.1 * (skew - skew.mT))


def closed_form(X: Tensor) -> Tensor:
    """By the eigenvalue decomposition."""
    y = torch.linalg.eigh(0.5 * (X + X.mT)).eigenvectors[:, :, -1]
    return y * y.sum(1, keepdim=True).sign()


def jacobian(X: Tensor) -> Tensor:
    """(λI − X)⁺ y_k, symmetrised in the two indices of X."""
    values, vectors = torch.linalg.eigh(0.5 * (X + X.mT))
    gaps = values[:, -1:] - values
    inverse = torch.where(gaps > 0, 1 / torch.where(gaps > 0, gaps, 1.0), 0.0)
    resolvent = (vectors * inverse.unsqueeze(1)) @ vectors.mT
    slope = resolvent.unsqueeze(3) * closed_form(X)[:, None, None, :]
    return 0.5 * (slope + slope.mT)


PROBLEM = Problem("eigenvector", Eigenvector, sample, (0,), closed_form, jacobian, "an indefinite objective on a sphere: other stationary points are saddles")
