"""The unit vector of least cosine distance.

    min 1 − x·y/(‖x‖‖y‖)   s.t.   ½‖y‖² = ½                                      x, y ∈ R³, x ≠ 0

y = x/‖x‖, ∂y/∂x = (I − yyᵀ)/‖x‖. The objective does not see how long y is, so that H is singular along y (and ν = 0): the inverse of H that textbook
formulas ask for does not exist. The constraint fixes the length, and the KKT matrix is regular.

Not regular at x = 0, where the objective is not defined.

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, on normalisation layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 3


class CosineDistance(DeclarativeNode):
    """x (n,) -> y (n,)."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 1 - x @ y / ((x @ x).sqrt() * (y @ y).sqrt())

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y @ y - 1)

    def initial_guess(self, x: Tensor) -> Tensor:
        """Not where the cosine is −1: that is stationary, too."""
        return torch.ones_like(x) * x.shape[1] ** -0.5 + 0 * x


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """At different distances from 0."""
    direction = torch.nn.functional.normalize(1.0 + 0.6 * normal(generator, batch, SIZE), dim=1)
    return cast(dtype, direction * uniform(generator, 0.5, 2.0, batch, 1))


def closed_form(x: Tensor) -> Tensor:
    """x/‖x‖."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def jacobian(x: Tensor) -> Tensor:
    """(I − yyᵀ)/‖x‖."""
    y = closed_form(x)
    across = torch.eye(x.shape[1], dtype=x.dtype) - y.unsqueeze(2) * y.unsqueeze(1)
    return across / torch.linalg.vector_norm(x, dim=1)[:, None, None]


PROBLEM = Problem("cosine", CosineDistance, sample, (0,), closed_form, jacobian, "H singular along the solution; the constraint makes up for it")
