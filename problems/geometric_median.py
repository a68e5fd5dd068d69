"""A smoothed geometric median: robust pooling of points.

    min Σ_i α²(√(1 + ‖y − x_i‖²/α²) − 1)                                         x_i, y ∈ R², i = 1…5; α > 0 shared by the batch

The pseudo-Huber penalty: quadratic near a point, the distance itself far from it. α → ∞ gives the mean, α → 0 the geometric
median. Strictly convex; no closed form.

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, section 5.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal

POINTS, SIZE = 5, 2


class GeometricMedian(DeclarativeNode):
    """x (k, n), α () -> y (n,), near to most of the k points."""

    def objective(self, x: Tensor, alpha: Tensor, y: Tensor) -> Tensor:
        squared = (y - x).square().sum(1)
        return (alpha**2 * ((1 + squared / alpha**2).sqrt() - 1)).sum()

    def initial_guess(self, x: Tensor, alpha: Tensor) -> Tensor:  # noqa: ARG002
        return x.mean(1)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """One point in five is an outlier."""
    points = normal(generator, batch, POINTS, SIZE)
    far = torch.where(torch.arange(POINTS) == 0, 6.0, 0.0).to(points).unsqueeze(1)
    return cast(dtype, points + far, torch.tensor(0.7, dtype=torch.float64))


PROBLEM = Problem("geometric_median", GeometricMedian, sample, (0, None), note="no closed form; a scalar input shared by the batch")
