"""Robust pooling by its objective alone: the point that penalties of distances to the data like best; instances of every kind.

    min_u Σ_i φ(‖u − x_i‖; α)                                                       x_i, u ∈ R^C, i = 1…N

Quadratic penalty: the mean. Huber's with one channel: with the points sorted, those within α of u are a run of neighbours i < j, and

    Σ_{i≤k<j} (u − x_k) + α (i − (N − j)) = 0    =>    u = (Σ_{i≤k<j} x_k + α (N − i − j)) / (j − i)

The slope is piecewise linear and does not fall, so that the run is found where it changes its sign: among the 2N kinks x_k ± α. The others
have no closed form; Welsch's is not convex, and its instances are one cluster with few outliers, so that the minimum is far from any other.

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, section 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

POINTS, SIZE = 5, 2

Phi = Callable[[Tensor, Tensor], Tensor]
"""(s, α) -> φ at squared distances s."""


def quadratic(s: Tensor, alpha: Tensor) -> Tensor:  # noqa: ARG001
    """z²/2: the mean."""
    return 0.5 * s


def pseudo_huber(s: Tensor, alpha: Tensor) -> Tensor:
    """α²(√(1 + z²/α²) − 1): the mean as α → ∞, the geometric median as α → 0; strictly convex."""
    return alpha**2 * ((1 + s / alpha**2).sqrt() - 1)


def huber(s: Tensor, alpha: Tensor) -> Tensor:
    """z²/2 up to z = α, α(z − α/2) beyond."""
    near = s <= alpha**2
    return torch.where(near, 0.5 * s, alpha * torch.where(near, 1.0, s).sqrt() - 0.5 * alpha**2)


def welsch(s: Tensor, alpha: Tensor) -> Tensor:
    """1 − exp(−z²/2α²)"""
    return -(-0.5 * s / alpha**2).expm1()


class Pooling(DeclarativeNode):
    """x (C, N), α () -> u (C,).

    Args:
        phi: the penalty.
        options: those of every node.
    """

    def __init__(self, phi: Phi = pseudo_huber, **options: Any) -> None:
        super().__init__(**options)
        self.phi = phi

    def objective(self, x: Tensor, alpha: Tensor, u: Tensor) -> Tensor:
        return self.phi((u.unsqueeze(1) - x).square().sum(0), alpha).sum()

    def initial_guess(self, x: Tensor, alpha: Tensor) -> Tensor:  # noqa: ARG002
        """The median of each channel."""
        return x.median(2).values


class WeightedPooling(Pooling):
    """x (C, N), w (N,), α () -> u (C,)."""

    def objective(self, x: Tensor, weights: Tensor, alpha: Tensor, u: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (weights * self.phi((u.unsqueeze(1) - x).square().sum(0), alpha)).sum()

    def initial_guess(self, x: Tensor, weights: Tensor, alpha: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] # noqa: ARG002
        return x.median(2).values


# Samplers


def with_outliers(generator: torch.Generator, batch: int, channels: int, points: int, far: float = 6.0) -> Tensor:
    """A standard normal cloud; one point in five lies aside, by `far` in each channel."""
    outlying = torch.arange(points) % 5 == 0
    return normal(generator, batch, channels, points) + torch.where(outlying, far, 0.0).to(torch.float64)


def clouds(channels: int, points: int, alpha: float) -> Callable[[int, torch.Generator, torch.dtype], Inputs]:
    """x with outliers, α shared by the batch."""

    def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
        return cast(dtype, with_outliers(generator, batch, channels, points), torch.tensor(alpha, dtype=torch.float64))

    return sample


def weighted_clouds(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """With weights between 1/2 and 3/2 and an α for each sample."""
    x = with_outliers(generator, batch, SIZE, POINTS)
    return cast(dtype, x, uniform(generator, 0.5, 1.5, batch, POINTS), uniform(generator, 0.5, 1.0, batch))


def lines(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """One channel, N = 7, α for each sample. No point at a distance of α from u: the gap to the next kink is at least 1/100."""
    kept: list[tuple[Tensor, Tensor]] = []
    while len(kept) < batch:
        x, alpha = with_outliers(generator, 1, 1, 7), uniform(generator, 0.6, 1.0, 1)
        u = huber_on_a_line(x, alpha)
        if bool((((x - u.unsqueeze(2)).abs() - alpha).abs() > 0.01).all()):
            kept.append((x, alpha))
    return cast(dtype, *(torch.cat(parts) for parts in zip(*kept, strict=True)))


def one_cluster(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Seven points of spread 1/2 and two outliers, for α near 3/2: the objective is convex around the cluster."""
    x = torch.cat([0.5 * normal(generator, batch, SIZE, 7), 6 + normal(generator, batch, SIZE, 2)], 2)
    return cast(dtype, x, uniform(generator, 1.3, 1.6, batch))


# Closed forms


def mean(x: Tensor, alpha: Tensor) -> Tensor:  # noqa: ARG001
    """The mean of the points."""
    return x.mean(2)


def mean_slope(x: Tensor, alpha: Tensor) -> Tensor:  # noqa: ARG001
    """∂u_c/∂x_dn = δ_cd/N"""
    batch, channels, points = x.shape
    eye = torch.eye(channels, dtype=x.dtype)
    return (eye / points)[None, :, :, None].expand(batch, channels, channels, points)


def huber_on_a_line(x: Tensor, alpha: Tensor) -> Tensor:
    """u (b, 1) by sorting, for x (b, 1, N) and α () or (b,).

    Where no point is within α of the minimum it is not unique; one end of the flat part is taken.
    """
    points = x.squeeze(1).sort(1).values
    count, scale = points.shape[1], alpha.expand(points.shape[0]).unsqueeze(1)
    kinks = torch.cat([points - scale, points + scale], 1).sort(1).values
    with torch.no_grad():
        slopes = (kinks.unsqueeze(2) - points.unsqueeze(1)).clamp(-scale.unsqueeze(2), scale.unsqueeze(2)).sum(2)
        # The last kink with a slope below zero: the minimum lies between it and the next.
        place = ((slopes < 0).sum(1, keepdim=True) - 1).clamp_min(0)
        middle = 0.5 * (kinks.gather(1, place) + kinks.gather(1, (place + 1).clamp_max(2 * count - 1)))
        near = (points - middle).abs() <= scale
        balance = ((points > middle) & ~near).sum(1, keepdim=True) - ((points < middle) & ~near).sum(1, keepdim=True)
    inside = near.sum(1, keepdim=True)
    u = (torch.where(near, points, 0.0).sum(1, keepdim=True) + scale * balance) / inside.clamp_min(1)
    return torch.where(inside > 0, u, kinks.gather(1, (place + 1).clamp_max(2 * count - 1)))


def huber_slope(x: Tensor, alpha: Tensor) -> Tensor:
    """∂u/∂x_n = 1/(number of points within α) for those, 0 for the others: (b, 1, 1, N)."""
    near = (x - huber_on_a_line(x, alpha).unsqueeze(2)).abs() <= alpha.expand(x.shape[0])[:, None, None]
    near = near.to(x.dtype)
    return (near / near.sum(2, keepdim=True)).unsqueeze(1)


def build(phi: Phi) -> Callable[[], Pooling]:
    """With this penalty."""
    return lambda: Pooling(phi)


PROBLEMS = (
    Problem("pooling_mean", build(quadratic), clouds(3, 4, 1.0), (0, None), mean, mean_slope, "the mean: α has no influence"),
    Problem("pooling", Pooling, clouds(SIZE, POINTS, 0.7), (0, None), note="pseudo-Huber: no closed form; a scalar input shared by the batch"),
    Problem("pooling_line", build(huber), lines, (0, 0), huber_on_a_line, huber_slope, "Huber, one channel: by sorting"),
    Problem("pooling_weighted", WeightedPooling, weighted_clouds, (0, 0, 0), note="a weight for each point"),
    Problem("pooling_welsch", build(welsch), one_cluster, (0, 0), note="not convex: the minimum at the cluster, regular and alone"),
)
