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
    x = cloud.x.squeeze(1).double()
    weights = torch.ones_like(x) if cloud.weights is None else cloud.weights.double()
    reach = alpha.double() if isinstance(alpha, Tensor) else alpha
    # Those that enter come first at one place: a point on the boundary is inside.
    order = torch.cat([x - reach, x + reach], 1).argsort(dim=1, stable=True)
    there = (weights > 0).to(x.dtype)
    sign, step = (torch.cat([t, -t], 1).gather(1, order) for t in (weights, there))
    count = step.cumsum(1)
    # Each run of overlapping windows has an origin of its own, its first point: outliers far away would cost digits.
    begins = (count - step == 0) & (step > 0)
    begin = torch.where(begins, torch.arange(order.shape[1], device=x.device), 0).cummax(1).values
    points = torch.cat([x, x], 1).gather(1, order)
    origin = points.gather(1, begin)
    local = torch.where((count > 0) | (step < 0), points - origin, 0.0)

    def running(values: Tensor) -> Tensor:
        sums = (sign * values).cumsum(1)
        return sums - (sums - sign * values).gather(1, begin)

    mass, first, second = running(torch.ones_like(local)), running(local), running(local * local)
    filled = count > 0.5
    shift = torch.where(filled, first / torch.where(filled & (mass > 0), mass, 1.0), 0.0)
    gain = torch.where(filled, 0.5 * reach**2 * mass - 0.5 * (second - shift * first), -torch.inf)
    mean = shift + origin
    best = gain.argmax(1, keepdim=True)
    u = mean.gather(1, best)
    eps = torch.finfo(cloud.x.dtype).eps
    apart = (mean - u).abs() > eps**0.5 * reach
    tied = apart & (gain >= gain.gather(1, best) - _TIED * eps * 0.5 * reach**2 * weights.sum(1, keepdim=True))
    other = torch.where(tied.any(1, keepdim=True), mean.gather(1, tied.to(x.dtype).argmax(1, keepdim=True)), u)
    return u.to(cloud.x.dtype), other.to(cloud.x.dtype)
