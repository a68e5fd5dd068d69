"""Projection onto the hyperplane of vectors that sum to one.

    min ½‖y − x‖²   s.t.   Σ y_i = 1                                             x, y ∈ Rⁿ

y = x − (Σx − 1)/n,   ν = (Σx − 1)/n,   ∂y/∂x = I − 11ᵀ/n.

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal

SIZE = 4


class HyperplaneProjection(DeclarativeNode):
    """x (n,) -> the nearest y (n,) with Σy = 1."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.sum() - 1

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, SIZE))


def closed_form(x: Tensor) -> Tensor:
    """x less its excess, spread evenly."""
    return x - (x.sum(1, keepdim=True) - 1) / x.shape[1]


def jacobian(x: Tensor) -> Tensor:
    """I − 11ᵀ/n."""
    n = x.shape[1]
    return (torch.eye(n, dtype=x.dtype) - 1 / n).expand(x.shape[0], n, n)


PROBLEM = Problem("hyperplane", HyperplaneProjection, sample, (0,), closed_form, jacobian, "one linear equality; a constant Jacobian")
