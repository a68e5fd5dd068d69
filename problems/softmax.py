"""Softmax, as the best distribution under an entropy term.

    min −xᵀy + Σ y_i log y_i   s.t.   Σ y_i = 1                                  x, y ∈ R⁴

y = softmax(x), and y > 0 of itself: the logarithm is a barrier that the line search must respect. H = diag(1/y) is badly scaled
where a probability is small. ∂y/∂x = diag(y) − yyᵀ.

Source: Boyd & Vandenberghe, "Convex Optimization", section 3.3.1 (the conjugate of the negative entropy), 2004.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal

SIZE = 4


class EntropicArgmax(DeclarativeNode):
    """x (n,) -> y (n,) = softmax(x)."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (y * y.log() - x * y).sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.sum() - 1

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 1 / x.shape[-1])


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do; large logits only make the smallest probability small."""
    return cast(dtype, normal(generator, batch, SIZE))


def closed_form(x: Tensor) -> Tensor:
    """softmax(x)."""
    return x.softmax(1)


def jacobian(x: Tensor) -> Tensor:
    """diag(y) − yyᵀ."""
    y = x.softmax(1)
    return torch.diag_embed(y) - y.unsqueeze(2) * y.unsqueeze(1)


PROBLEM = Problem("softmax", EntropicArgmax, sample, (0,), closed_form, jacobian, "an objective with a domain; H depends on y")
