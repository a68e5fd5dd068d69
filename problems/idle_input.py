"""The logarithm as a minimiser, with an input and a parameter that the statement does not use.

    min Σ_i exp(y_i) − x_i y_i                                                   x > 0, y ∈ R³

y = log x,   ∂y/∂x = diag(1/x). The derivatives with respect to the idle input and the idle parameter are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE, IDLE = 3, 2


class IdleInput(DeclarativeNode):
    """x (n,) > 0, idle (any shape) -> y (n,) = log x."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(IDLE))

    def objective(self, x: Tensor, idle: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (y.exp() - x * y).sum()

    def initial_guess(self, x: Tensor, idle: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(x)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Away from zero."""
    return cast(dtype, uniform(generator, 0.4, 3.0, batch, SIZE), normal(generator, batch, IDLE))


def closed_form(x: Tensor, idle: Tensor) -> Tensor:
    """log x, and zero times the idle input so that its gradient is there to be compared."""
    return x.log() + 0 * idle.sum()


def jacobian(x: Tensor, idle: Tensor) -> Tensor:  # noqa: ARG001
    """diag(1/x)."""
    return torch.diag_embed(1 / x)


PROBLEM = Problem("idle_input", IdleInput, sample, (0, 0), closed_form, jacobian, "an input and a parameter that nothing depends on")
