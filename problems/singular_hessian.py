"""A regular problem whose objective has a singular Hessian.

    min ½(y₁ − x)²   s.t.   y₁ + y₂ = 1                                          x a number, y ∈ R²

y = (x, 1 − x),   ∂y/∂x = (1, −1),   ν = 0. H = diag(1, 0) has no inverse, but it is positive definite on the null space of
A = (1, 1), so the KKT matrix is regular. A formula through H⁻¹ fails here, or is "repaired" to something wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal


class SingularHessian(DeclarativeNode):
    """x () -> y (2,) with y₁ nearest to x on the line y₁ + y₂ = 1."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y[0] - x).square()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.sum() - 1

    def initial_guess(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 2)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch))


def closed_form(x: Tensor) -> Tensor:
    """(x, 1 − x)."""
    return torch.stack([x, 1 - x], 1)


def jacobian(x: Tensor) -> Tensor:
    """(1, −1)."""
    return torch.tensor([1.0, -1.0], dtype=x.dtype).expand(x.shape[0], 2)


PROBLEM = Problem("singular_hessian", SingularHessian, sample, (0,), closed_form, jacobian, "H is singular, the KKT matrix is not")
