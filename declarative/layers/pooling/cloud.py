"""A batch of point sets with their penalty, and what is known at one candidate for each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from declarative.layers.pooling.penalty import Penalty, Value


@dataclass(frozen=True, eq=False)
class Cloud:
    """min_u Σ_i w_i φ(‖u − x_i‖), one for each sample.

    Args:
        x: points (b, C, N).
        weights: (b, N); None: ones.
        penalty: φ.
        values: its parameters: numbers, or tensors (b, 1).
    """

    x: Tensor
    weights: Tensor | None
    penalty: Penalty
    values: tuple[Value, ...]

    def rows(self, index: Tensor) -> Cloud:
        """Some of the samples, in this order."""
        weights = None if self.weights is None else self.weights[index]
        own = self.penalty.own_shapes
        return Cloud(self.x[index], weights, self.penalty, tuple(v[index] if isinstance(v, Tensor) and not own else v for v in self.values))

    def weighted(self, values: Tensor) -> Tensor:
        """Numbers for each point (b, N), or (b, S, N) for several places, times the weights."""
        if self.weights is None:
            return values
        return values * (self.weights if values.ndim == 2 else self.weights.unsqueeze(1))

    def centre(self) -> Tensor:
        """(b, C) the weighted mean; 0 without weight."""
        if self.weights is None:
            return self.x.mean(2)
        return (self.x * self.weights.unsqueeze(1)).sum(2) / positive(self.weights.sum(1, keepdim=True))

    def at(self, u: Tensor) -> Candidate:
        """What is known at u (b, C)."""
        toward = self.x - u.unsqueeze(2)
        return Candidate(self, u, toward, (toward * toward).sum(1))


class Candidate:
    """A point u for each sample; what follows from it is computed when asked for.

    Args:
        cloud: the problem.
        u: (b, C).
        toward: x_i − u (b, C, N).
        squared: s_i = ‖u − x_i‖² (b, N).
    """

    def __init__(self, cloud: Cloud, u: Tensor, toward: Tensor, squared: Tensor) -> None:
        self.cloud, self.u, self.toward, self.squared = cloud, u, toward, squared

    @cached_property
    def bare_kappa1(self) -> Tensor:
        """κ₁ (b, N)."""
        return self.cloud.penalty.kappa1(self.squared, *self.cloud.values)

    @cached_property
    def kappa1(self) -> Tensor:
        """wκ₁ (b, N)."""
        return self.cloud.weighted(self.bare_kappa1)

    @cached_property
    def kappa2(self) -> Tensor | None:
        """wκ₂ (b, N); None where it is zero everywhere."""
        kappa2 = self.cloud.penalty.kappa2(self.squared, self.bare_kappa1, *self.cloud.values)
        return None if kappa2 is None else self.cloud.weighted(kappa2)

    @cached_property
    def value(self) -> Tensor:
        """Σ wφ (b,)."""
        return self.cloud.weighted(self.cloud.penalty.phi(self.squared, *self.cloud.values)).sum(1)

    @cached_property
    def mass(self) -> Tensor:
        """Σ wκ₁ (b,)."""
        return self.kappa1.sum(1)

    @cached_property
    def pull(self) -> Tensor:
        """−∇ = Σ wκ₁ (x_i − u) (b, C)."""
        return (self.toward * self.kappa1.unsqueeze(1)).sum(2)

    def stationarity(self) -> Tensor:
        """(b,) ‖∇‖ relative to the size of its terms, Σ wκ₁z; 0 where there are none."""
        # By way of the step, whose square does not underflow where all weights or κ₁ are tiny.
        return torch.linalg.vector_norm(self.step, dim=1) * self.mass.abs() / positive((self.kappa1 * self.squared.sqrt()).sum(1))

    @cached_property
    def step(self) -> Tensor:
        """(b, C) to the reweighted mean; 0 where nothing pulls."""
        return self.pull / positive(self.mass).unsqueeze(1)


def positive(tensor: Tensor) -> Tensor:
    """What is not negative, as a divisor of what vanishes with it."""
    return tensor.clamp_min(torch.finfo(tensor.dtype).tiny)
