"""The global minimum of the truncated quadratic for one channel.

Which points are near, |x_i − u| ≤ α, changes only where u passes x_i ± α. Between two such events the objective is the quadratic of the
points inside plus α²/2 for each one outside, and the smallest of the minima of these quadratics is the global minimum: at its u the
objective is not above it, and the minimiser's own quadratic is among them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.pooling.cloud import Cloud

_TIED = 64  # rounding errors by which tied values may differ, for each point


def best_windows(cloud: Cloud, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """The minimiser (b, 1) and the second best window's (b, 1): the same point where no other window is as good."""
    x = cloud.x.squeeze(1)
    weights = torch.ones_like(x) if cloud.weights is None else cloud.weights
    centre = cloud.centre()
    x = x - centre
    events = torch.cat([x - alpha, x + alpha], 1)
    # Those that enter come first at one place: a point on the boundary is inside.
    order = events.argsort(dim=1, stable=True)
    sign = torch.cat([weights, -weights], 1)

    def running(values: Tensor) -> Tensor:
        return (sign * torch.cat([values, values], 1)).gather(1, order).cumsum(1)

    inside = torch.cat([torch.ones_like(x), -torch.ones_like(x)], 1) * torch.cat([weights > 0, weights > 0], 1)
    count = inside.gather(1, order).cumsum(1)
    mass, first, second = running(torch.ones_like(x)), running(x), running(x * x)
    filled = count > 0.5
    mean = torch.where(filled, first / torch.where(filled & (mass > 0), mass, 1.0), 0.0)
    gain = torch.where(filled, 0.5 * alpha**2 * mass - 0.5 * (second - mean * first), -torch.inf)
    best = gain.argmax(1, keepdim=True)
    u = mean.gather(1, best)
    eps = torch.finfo(x.dtype).eps
    apart = (mean - u).abs() > eps**0.5 * alpha
    size = 0.5 * alpha**2 * weights.sum(1, keepdim=True)
    tied = apart & (gain >= gain.gather(1, best) - _TIED * eps * size)
    other = torch.where(tied.any(1, keepdim=True), mean.gather(1, tied.to(x.dtype).argmax(1, keepdim=True)), u)
    return u + centre, other + centre
