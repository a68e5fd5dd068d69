"""Projection onto the unit sphere.

    min ½‖y − x‖²   s.t.   ‖y‖² = 1                                              x, y ∈ R³

y = x/‖x‖,   ∂y/∂x = (I − yyᵀ)/‖x‖,   ν = (‖x‖ − 1)/2, of either sign. H = (1 + 2ν)I = ‖x‖ I: the constraint's curvature
is part of it.

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, section 5.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 3


class SphereProjection(DeclarativeNode):
    """x (n,), not zero -> the nearest y (n,) with ‖y‖ = 1."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.square().sum() - 1

    def initial_guess(self, x: Tensor) -> Tensor:
        return x + 0.1


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Norms on both sides of one, none near zero."""
    direction = normal(generator, batch, SIZE)
    direction = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    return cast(dtype, direction * uniform(generator, 0.5, 2.5, batch, 1))


def closed_form(x: Tensor) -> Tensor:
    """x / ‖x‖."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def jacobian(x: Tensor) -> Tensor:
    """(I − yyᵀ)/‖x‖."""
    norm = torch.linalg.vector_norm(x, dim=1)[:, None, None]
    y = (x / norm.squeeze(2)).unsqueeze(2)
    return (torch.eye(x.shape[1], dtype=x.dtype) - y @ y.mT) / norm


PROBLEM = Problem("sphere", SphereProjection, sample, (0,), closed_form, jacobian, "one curved equality: H holds ν times its curvature")
