"""`EuclideanTopK`: the projection onto the capped simplex."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from declarative.layers.topk.relaxed import RelaxedTopK
from declarative.structure import DiagonalOperator


class EuclideanTopK(RelaxedTopK):
    """u = argmin_u −⟨x, u⟩ + (T/2)‖u‖²  s.t.  Σu = k, 0 ≤ u ≤ 1: x/T projected onto the capped simplex.

    u_i = clamp((x_i + τ)/T, 0, 1): sparse, most entries are exactly 0 or 1. T → 0 gives the hard top-k. The derivative is that of the entries in
    between; where one touches a bound without pushing it is one-sided, and that entry counts as in between.

    Args:
        k: how many: an int between 0 and n, or an integer tensor that broadcasts with the dimensions of the logits other than `dim`.
        temperature: T > 0: a number, a tensor that broadcasts in the same way, or a `torch.nn.Parameter` to be learned.
        dim: the dimension to select along.

    Shapes:
        logits (…, n) -> u (…, n), Σu = k. k = 0 gives zeros, k = n ones, with zero gradients.

    Raises:
        ValueError, TypeError: k out of range or no integer, logits that are not finite, temperatures that are not positive.

    Example:
        >>> EuclideanTopK(2)(torch.tensor([2.0, 1.5, 1.0, -1.0]))
        tensor([1.0000, 0.7500, 0.2500, 0.0000])

    Source: Wang & Lu, "Projection onto the capped simplex", 2015.
    """

    def objective(self, *inputs_and_u: Tensor) -> Tensor:
        """−⟨x, u⟩ + (T/2)‖u‖²"""
        *inputs, u = inputs_and_u
        x, u, temperature = self._stated(inputs, u)
        return (-x * u + 0.5 * temperature * u.square()).sum()

    def inequality_constraints(self, *inputs_and_u: Tensor) -> Tensor:
        """−u ≤ 0 and u − 1 ≤ 0."""
        u = inputs_and_u[-1].flatten()
        return torch.cat([-u, u - 1])

    def hessian(self, *inputs_and_solution: Any) -> DiagonalOperator:
        """H = T I"""
        *inputs, _ = inputs_and_solution
        given, temperature = self._given(tuple(inputs))
        scale = self._scale(given, temperature)
        return DiagonalOperator(scale.unsqueeze(1).expand(given.x.shape))

    def _bounds(self, x: Tensor, u: Tensor, shift: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        excess = x + shift.unsqueeze(1)
        scale = temperature.unsqueeze(1)
        below, above = -excess, excess - scale
        edge = _touching(u.dtype) * scale
        multipliers = torch.cat([below, above], 1).clamp_min(0.0)
        weakly = torch.cat([below.abs() <= edge, above.abs() <= edge], 1)
        return torch.where(weakly, 0.0, multipliers), (multipliers > 0) & ~weakly, weakly

    @staticmethod
    def _inverse(a: Tensor) -> Tensor:
        return a.clamp(0.0, 1.0)

    @staticmethod
    def _slope(a: Tensor) -> Tensor:
        edge = _touching(a.dtype)
        return ((a >= -edge) & (a <= 1 + edge)).to(a.dtype)

    def _start(self, x: Tensor, k: Tensor, temperature: Tensor, most: int) -> tuple[Any, Tensor, Tensor, Tensor]:
        values = x.topk(most + 1, dim=1).values
        at = k.long().clamp(1, max(1, most)).unsqueeze(1)
        middle = 0.5 * (values.gather(1, at - 1) + values.gather(1, at.clamp_max(most))).squeeze(1)
        low, high, margin = self._range(x, temperature)
        return (x, k, temperature), -high - margin, margin + temperature - low, 0.5 * temperature - middle

    def _evaluate(self, prepared: Any, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σu − k: piecewise linear, so that Newton's method ends at the root after the last change of pieces."""
        x, k, temperature = prepared
        a = (x + shift.unsqueeze(1)) / temperature.unsqueeze(1)
        u = a.clamp(0.0, 1.0)
        value, slope = u.sum(1) - k, ((a > 0) & (a < 1)).sum(1) / temperature
        eps = torch.finfo(shift.dtype).eps
        return value, slope, (value.abs() <= 4 * eps * k) | (value.abs() <= eps * shift.abs() * slope)


def _touching(dtype: torch.dtype) -> float:
    """How near to a bound, in units of u, counts as touching it."""
    return 1e-11 if dtype == torch.float64 else 1e-5
