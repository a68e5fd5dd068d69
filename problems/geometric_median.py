"""The geometric median: the point of least total distance.

    min Σ_i w_i ‖y − x_i‖                                                        x_i, y ∈ R², w ∈ R⁵, w > 0

With d_i = ‖y − x_i‖ and u_i = (y − x_i)/d_i:  ∇ = Σ w_i u_i and H = Σ (w_i/d_i)(I − u_i u_iᵀ), so that ∂y/∂x_i = H⁻¹ (w_i/d_i)(I − u_i u_iᵀ) and
∂y/∂w_i = −H⁻¹u_i. The minimiser is unique unless the points lie on a line, and then it need not be.

Not differentiable at the data: x_j is the median where ‖Σ_{i≠j} w_i (x_j − x_i)/‖x_j − x_i‖‖ ≤ w_j. The samples stay away from that: their points surround
the median, with none near it. `declarative.layers.RobustPooling` has the smoothed relatives, which have no such points.

Source: Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnés est minimum", Tôhoku Mathematical Journal 43, 1937.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform
from problems.oracles import root

POINTS, SIZE = 5, 2


class GeometricMedian(DeclarativeNode):
    """x (k, n), w (k,) > 0 -> y (n,)."""

    def objective(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return (w * torch.linalg.vector_norm(y - x, dim=1)).sum()

    def initial_guess(self, x: Tensor, w: Tensor) -> Tensor:
        return (w.unsqueeze(2) * x).sum(1) / w.sum(1, keepdim=True)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Around a circle, at different distances from it."""
    angle = 2 * pi * (torch.arange(POINTS) + uniform(generator, -0.2, 0.2, batch, POINTS)) / POINTS
    radius = uniform(generator, 0.8, 1.6, batch, POINTS)
    x = normal(generator, batch, 1, SIZE) + radius.unsqueeze(2) * torch.stack([angle.cos(), angle.sin()], 2)
    return cast(dtype, x, uniform(generator, 0.7, 1.3, batch, POINTS))


def _rejections(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """(w_i/d_i)(I − u_i u_iᵀ), (b, k, n, n)."""
    away = y.unsqueeze(1) - x
    distance = torch.linalg.vector_norm(away, dim=2)[..., None, None]
    unit = away.unsqueeze(3) / distance
    return w[..., None, None] / distance * (torch.eye(x.shape[2], dtype=x.dtype) - unit @ unit.mT)


def closed_form(x: Tensor, w: Tensor) -> Tensor:
    """Weiszfeld's iteration comes near; the root of the gradient is there."""

    def pulls(y: Tensor) -> Tensor:
        return (w / torch.linalg.vector_norm(y.unsqueeze(1) - x, dim=2)).unsqueeze(2)

    with torch.no_grad():
        y = x.mean(1)
        for _ in range(100):
            y = (pulls(y) * x).sum(1) / pulls(y).sum(1)
    return root(lambda y: (pulls(y) * (y.unsqueeze(1) - x)).sum(1), lambda y: _rejections(x, w, y).sum(1), y, steps=5)


def jacobian(x: Tensor, w: Tensor) -> Tensor:
    """∂y_j/∂x_kl."""
    each = _rejections(x, w, closed_form(x, w))
    return torch.linalg.solve(each.sum(1).unsqueeze(1), each).transpose(1, 2)


PROBLEM = Problem("geometric_median", GeometricMedian, sample, (0, 0), closed_form, jacobian, "smooth at the solution, though not everywhere")
