"""Projection onto the unit ball.

    min ½‖y − x‖²   s.t.   ‖y‖² ≤ 1                                              x, y ∈ R³

Inside: y = x, ∂y/∂x = I, the constraint is inactive. Outside: y = x/‖x‖, ∂y/∂x = (I − yyᵀ)/‖x‖, μ = (‖x‖ − 1)/2.
On the sphere itself the constraint is weakly active and y has only one-sided derivatives.

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, section 5.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 3


class BallProjection(DeclarativeNode):
    """x (n,) -> the nearest y (n,) with ‖y‖ ≤ 1."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.square().sum() - 1

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """By turns inside and outside, well away from the sphere."""
    direction = normal(generator, batch, SIZE)
    direction = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    inside, outside = uniform(generator, 0.2, 0.8, batch, 1), uniform(generator, 1.5, 3.0, batch, 1)
    return cast(dtype, direction * torch.where((torch.arange(batch) % 2 == 0).unsqueeze(1), inside, outside))


def closed_form(x: Tensor) -> Tensor:
    """x / max(1, ‖x‖)."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1)


def jacobian(x: Tensor) -> Tensor:
    """I inside, (I − yyᵀ)/‖x‖ outside."""
    eye = torch.eye(x.shape[1], dtype=x.dtype).expand(x.shape[0], -1, -1)
    norm = torch.linalg.vector_norm(x, dim=1)[:, None, None]
    y = (x / norm.squeeze(2)).unsqueeze(2)
    return torch.where(norm < 1, eye, (eye - y @ y.mT) / norm)


PROBLEM = Problem("ball", BallProjection, sample, (0,), closed_form, jacobian, "one curved inequality, active in some samples only")
