"""The nearest matrix with given row sums.

    min ½‖Y − X‖²_F   s.t.   Y1 = r                                              X, Y: 2×3, r ∈ R²

Y = X + (r − X1)1ᵀ/n: what is missing in a row is spread evenly over it. ν = (X1 − r)/n. y is a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal

ROWS, COLUMNS = 2, 3


class RowSums(DeclarativeNode):
    """X (m, n), r (m,) -> the nearest Y (m, n) with Y1 = r."""

    def objective(self, X: Tensor, r: Tensor, Y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (Y - X).square().sum()

    def equality_constraints(self, X: Tensor, r: Tensor, Y: Tensor) -> Tensor:  # noqa: ARG002
        return Y.sum(1) - r

    def initial_guess(self, X: Tensor, r: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(X)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, ROWS, COLUMNS), normal(generator, batch, ROWS))


def closed_form(X: Tensor, r: Tensor) -> Tensor:
    """X + (r − X1)1ᵀ/n."""
    return X + ((r - X.sum(2)) / X.shape[2]).unsqueeze(2)


def jacobian(X: Tensor, r: Tensor) -> Tensor:  # noqa: ARG001
    """∂Y_ij/∂X_kl = δ_ik(δ_jl − 1/n)."""
    b, m, n = X.shape
    inner = torch.eye(n, dtype=X.dtype) - 1 / n
    return torch.einsum("ik,jl->ijkl", torch.eye(m, dtype=X.dtype), inner).expand(b, m, n, m, n)


PROBLEM = Problem("row_sums", RowSums, sample, (0, 0), closed_form, jacobian, "a matrix as y; an input that only the constraints use")
