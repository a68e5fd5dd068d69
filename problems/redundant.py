"""The same constraint written twice.

    min ½‖y − x‖²   s.t.   Σ y_i = s,   2 Σ y_i = 2s                             x, y ∈ R⁴, s a number

y = x − (Σx − s)/n, as if it were written once: ∂y/∂x = I − 11ᵀ/n, ∂y/∂s = 1/n. But A has rank one and two rows, the multipliers
are not unique (ν₁ + 2ν₂ is), and the KKT matrix is singular. By default that is an error that says so; `irregular="min_norm"`
takes the pseudo-inverse, which gives y's derivative exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode, Implicit
from problems.base import Inputs, Problem, cast, normal

SIZE = 4


class RedundantConstraints(DeclarativeNode):
    """x (n,), s () -> the nearest y (n,) with Σy = s, twice."""

    def objective(self, x: Tensor, total: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, total: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        excess = y.sum() - total
        return torch.stack([excess, 2 * excess])

    def initial_guess(self, x: Tensor, total: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(x)


def build() -> RedundantConstraints:
    """With the policy that this problem needs."""
    return RedundantConstraints(differentiation=Implicit(irregular="min_norm"))


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, SIZE), normal(generator, batch))


def closed_form(x: Tensor, total: Tensor) -> Tensor:
    """As for the constraint written once."""
    return x - (x.sum(1, keepdim=True) - total.unsqueeze(1)) / x.shape[1]


def jacobian(x: Tensor, total: Tensor) -> Tensor:  # noqa: ARG001
    """I − 11ᵀ/n."""
    n = x.shape[1]
    return (torch.eye(n, dtype=x.dtype) - 1 / n).expand(x.shape[0], n, n)


PROBLEM = Problem("redundant", build, sample, (0, 0), closed_form, jacobian, "a rank-deficient Jacobian of the constraints")
